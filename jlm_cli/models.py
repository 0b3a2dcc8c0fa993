"""From a model's name to its files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import orjson

from jlm_cli.builtin import builtin_base, builtin_judge
from jlm_cli.config import file_sha256
from jlm_cli.errors import ModelError
from jlm_cli.hub import Say, from_hub
from jlm_cli.prompts import own_files
from jlm_cli.records import dump

HUB_DEFAULT = "BAAI/JudgeLM-7B-v1.0"
FAKE = "fake"
TINY, TINY_BASE = "tiny", "tiny-base"
ADAPTER = Path(__file__).resolve().parent / "weights" / "tiny"

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".toml")
_PIECE, _PIECES = 4096, 512  # bytes of weights that are looked at, and in how many places
_TAUGHT = "judge.json"  # in a judge's folder: {"template": NAME}


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies: a folder (with one GGUF file in it), perhaps a LoRA adapter on top.

    `name` is what the user called it, with the revision.
    """

    name: str
    folder: Path
    gguf: str | None = None
    adapter: Path | None = None

    def identity(self) -> dict[str, Any]:
        """What tells the model's files from others: small ones by content, weights by their size
        and the ends of each tensor. A copy is the same."""
        if self.name == FAKE:
            return {"name": self.name}
        base = _read_in(self.folder) if self.gguf is None else [self.folder / self.gguf]
        files = {path.name: path for path in base}
        if self.adapter is not None:
            files |= {f"adapter/{path.name}": path for path in _read_in(self.adapter)}
        return {"name": self.name, **{name: _identity_of(path) for name, path in files.items()}}

    def weights(self) -> list[Path]:
        """The files that hold them; safetensors before .bin, as transformers has it."""
        if self.gguf is not None:
            return [self.folder / self.gguf]
        there = _read_in(self.folder)
        safe = [path for path in there if path.suffix == ".safetensors"]
        return safe or [path for path in there if path.suffix == ".bin"]

    @property
    def template(self) -> str | None:
        """What a judge was taught with, where its folder says so: the name of a template, or the
        path of the copy that lies there. Raises ModelError."""
        told = (self.adapter or self.folder) / _TAUGHT
        if self.name == FAKE or not told.is_file():
            return None
        try:
            name = str(orjson.loads(told.read_bytes())["template"])
        except (orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise ModelError(f"{told}: names no template") from error
        return str(told.with_name(Path(name).name)) if name.endswith(".toml") else name

    @property
    def remedy(self) -> str:
        """What helps where the files are damaged."""
        built = self.name in (TINY, TINY_BASE)
        return f"; remove {self.folder}, and it is built anew" if built else ""

    @property
    def untrained(self) -> bool:
        """The built-in base has never learnt to judge."""
        return self.name == TINY_BASE


def keep_template(name: str | None, folder: Path) -> None:
    """Have a judge's folder say what it was taught with, where a template was named; one of the
    user's own is copied, with all that it is read from."""
    if name is None:
        return
    for path in own_files(name):
        shutil.copyfile(path, folder / path.name)
    (folder / _TAUGHT).write_bytes(dump({"template": Path(name).name}) + b"\n")


def _read_in(folder: Path) -> list[Path]:
    """The files of a folder that a model may be read from; not logs, outputs or notes."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix in _WEIGHTS + _BESIDE_WEIGHTS
    )


def _identity_of(path: Path) -> list[Any]:
    status = path.stat()
    if path.suffix not in _WEIGHTS or status.st_size < 1 << 20:
        return [file_sha256(path)]
    return [status.st_size, _sampled_sha256(path, status.st_size, status.st_mtime_ns)]


@cache
def _sampled_sha256(path: Path, size: int, changed: int) -> str:
    """Of pieces of the weights, wherever training would change them: both ends of each tensor of
    safetensors, and so many pieces of any file. `changed` is for the cache, which may be stale."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for place in (*_ends_of_tensors(file, size), *range(0, size, max(1, size // _PIECES))):
            file.seek(place)
            digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _ends_of_tensors(file: IO[bytes], size: int) -> Iterator[int]:
    """Where pieces of them begin; nothing where the file is none of safetensors."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = orjson.loads(file.read(length)) if length < size else {}
        spans = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
        for start, end in spans:
            for place in (start, max(start, end - _PIECE)):
                yield min(max(0, 8 + length + place), size)
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
        return


def find(name: str, say: Say) -> ModelFiles:
    """The files of a model, fetched first where they must be. Raises ModelError."""
    if name == FAKE:
        return ModelFiles(name, Path())
    if name == TINY_BASE:
        return ModelFiles(name, builtin_base(say))
    if name == TINY:
        return ModelFiles(name, builtin_judge(ADAPTER, say))
    path = Path(name)
    if path.exists():
        return _local(name, path, say)
    hub_id, _, revision = name.partition("@")
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")) or hub_id.endswith("/"):
        raise ModelError(
            f"model {name}: no such file or folder, and no hub id (OWNER/NAME[@REVISION]); "
            f"the built-in model is called {TINY}"
        )
    return ModelFiles(name, from_hub(hub_id, revision or None, say))


def _local(name: str, path: Path, say: Say) -> ModelFiles:
    if path.suffix == ".gguf":
        return ModelFiles(name, path.parent, gguf=path.name)
    if (path / "config.json").is_file():
        return ModelFiles(name, path)
    if (path / "adapter_config.json").is_file():
        base = adapter_facts(path)[0]
        if (Path(base) / "adapter_config.json").is_file():
            raise ModelError(f"{path}/adapter_config.json: its base {base} is an adapter itself")
        try:
            below = find(base, say)
        except ModelError as error:
            raise ModelError(f"{path}/adapter_config.json: its base: {error}") from error
        return ModelFiles(name, below.folder, below.gguf, adapter=path)
    raise ModelError(f"model {name}: neither a .gguf file nor a folder with config.json")


def adapter_facts(adapter: Path) -> tuple[str, int]:
    """The name of an adapter's base model, and the adapter's rank. Raises ModelError."""
    try:
        about = orjson.loads((adapter / "adapter_config.json").read_bytes())
        return str(about["base_model_name_or_path"]), int(about.get("r", 0))
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{adapter}/adapter_config.json: names no base model") from error
