"""Where and how a model computes: device, number format, batch size.

torch is imported inside the functions that need it, so that the command line starts at once.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from jlm_cli import __version__
from jlm_cli.batching import GROWTH, PADDED, RESERVE
from jlm_cli.config import Config, Quantize
from jlm_cli.errors import ModelError
from jlm_cli.models import FAKE, HUB_DEFAULT, TINY, ModelFiles
from jlm_cli.vocabularies import text_config, whole_config


def default_name() -> str:
    """The model to take where none is named: JLM_MODEL, JudgeLM on CUDA, else the built-in."""
    if name := os.environ.get("JLM_MODEL"):
        return name
    prepare_cpu()
    import torch

    return HUB_DEFAULT if torch.cuda.is_available() else TINY


def prepare_cpu() -> None:
    """What must be in the environment before torch computes; the user's own settings stay.

    Huge pages spare the page faults of large tensors (Linux). MKL's strict mode gives the
    same products for any number of threads, at no cost that could be measured.
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


def choose_dtype(name: str | None, device: str, quantize: Quantize | None = None) -> str:
    """bfloat16 where the hardware multiplies it fast, and beside float8; else float32, on CUDA
    float16."""
    if name is not None:
        return name
    if quantize == "fp8" or multiplies_bfloat16(device):
        return "bfloat16"
    return "float16" if device == "cuda" else "float32"


def training_dtype(device: str) -> str:
    """What gradients are computed in: never float16, in which small ones vanish."""
    return "bfloat16" if device != "mps" and multiplies_bfloat16(device) else "float32"


def multiplies_bfloat16(device: str) -> bool:
    """GPUs do from Ampere on; of CPUs those with AMX tiles or AVX-512's bfloat16 products, at twice
    the rate of float32 and more. Others emulate it, at half the rate."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return True
    return has_amx() or bool(torch.cpu._is_avx512_bf16_supported())


def has_amx() -> bool:
    """Whether the processor multiplies 16 bits in tiles."""
    import torch

    return bool(torch.cpu._is_amx_tile_supported())


# under way at once: the GPU is at one and has the next, while a third is looked through
GPU_BATCHES = 3
# of a batch on a CPU; packs are smaller, this bounds keys, values and logits of drafts
_CPU_LEAST, _CPU_SCORING, _CPU_WRITING = 4096, 8192, 16384  # tokens


THREADS = "number of threads"  # of each worker on a CPU


def _threads() -> int:
    """They change bytes: oneDNN adds up the tiles of AMX in an order that goes by their number, and
    torch computes an activation's last numbers of each thread without vectors."""
    import torch

    return torch.get_num_threads()


@dataclass(frozen=True)
class Compute:
    """Where and how a model computes: found out once, the same for every worker.

    So many full batches are under way `at_once`; a worker on a CPU has so many `threads`. `weights`
    and `cache` are estimates in bytes of what the model and these batches take, `memory` what the
    device has.
    """

    device: str
    dtype: str
    batch_tokens: int
    quantize: Quantize | None = None
    gpus_per_model: int = 1
    at_once: int = 1
    threads: int | None = None
    weights: int = 0
    cache: int = 0
    memory: int = 0

    def settings(self) -> dict[str, Any]:
        """What of it can change a byte of the output."""
        here = {"device": self.device, "dtype": self.dtype, "batch_tokens": self.batch_tokens}
        if self.threads is not None:
            here[THREADS] = self.threads
        return {**here, "kernels": version_of_kernels()} if self.device == "cuda" else here

    def sizes(self) -> dict[str, int]:
        """Estimates in bytes."""
        return {"weights": self.weights, "cache": self.cache, "memory": self.memory}


def choose_compute(files: ModelFiles, config: Config, writes: bool) -> Compute:
    """Device, number format and batch size for a run, that reads alone or also writes reasons.

    Raises ModelError.
    """
    if files.name == FAKE:
        return Compute("cpu", "float32", config.batch_tokens or _CPU_LEAST)
    device = "cpu" if config.workers is not None else choose_device(config.device)
    dtype = choose_dtype(config.dtype, device, config.quantize)
    if config.quantize is not None:
        _check_quantize(files, device, dtype, config.quantize)
    cache, hidden = _sizes(files, dtype)
    weights = weight_bytes(files, dtype, config.quantize)
    memory = _memory(device)
    if writes:
        cache *= GROWTH
    if device == "cuda":
        memory *= config.gpus_per_model
        at_most, most = (1, _GPU_WRITING) if writes else (GPU_BATCHES, _GPU_SCORING)
        at_once, automatic = batches_within(memory, weights, cache, hidden, at_most, most)
    else:
        most = _CPU_WRITING if writes else _CPU_SCORING
        at_once, automatic = 1, batch_on_cpu(memory, cache, most)
    tokens = config.batch_tokens or automatic
    return Compute(
        device,
        dtype,
        tokens,
        config.quantize,
        config.gpus_per_model,
        at_once,
        _threads() if device == "cpu" else None,
        weights,
        cache * tokens * at_once,
        memory,
    )


def _sizes(files: ModelFiles, dtype: str) -> tuple[int, int]:
    """Bytes of keys and values for one token, and the width of the model."""
    import torch

    config = text_config(files)
    try:
        kept = sum(groups * size for _, groups, size in heads_in(config))
    except AttributeError:  # of a recurrent one, about
        kept = int(config.num_hidden_layers) * int(config.hidden_size)
    return 2 * kept * getattr(torch, dtype).itemsize, int(config.hidden_size)


def heads_in(config: Any) -> list[tuple[int, int, int]]:
    """Heads of queries, of keys, and their size, by layer. Raises AttributeError where there are
    none."""
    layers = range(int(config.num_hidden_layers))
    own = getattr(config, "per_layer_config", None)
    return [_heads_in(config if own is None else own[layer]) for layer in layers]


def _heads_in(config: Any) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return heads, groups, getattr(config, "head_dim", None) or config.hidden_size // heads


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
    """Of jlm, torch and transformers."""
    from importlib.metadata import version

    others = {f"version of {name}": version(name) for name in ("torch", "transformers")}
    return {"version of jlm": __version__, **others}


def version_of_kernels() -> str | None:
    """Of Triton, which our own are written in; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return None


# of a batch; one that writes is by itself, and a step over it reads all weights for few tokens
_GPU_LEAST, _GPU_SCORING, _GPU_WRITING = 2048, 65536, 131072  # tokens
_STEP = 1024  # cards of one kind differ by some megabytes; a run goes on on any of them


def batches_within(
    total: int, weights: int, cache_per_token: int, hidden: int, at_most: int, most: int
) -> tuple[int, int]:
    """Batches under way on a GPU, and the tokens of each: places for their keys and values, and a
    layer's activations, have to fit beside the weights. One batch where there is little room."""
    room = 0.85 * total - weights
    for at_once in (at_most, 1):
        each = RESERVE * PADDED * at_once * cache_per_token + 48 * hidden
        tokens = int(room / each) // _STEP * _STEP
        if tokens >= _GPU_LEAST:
            break
    return at_once, min(max(tokens, _GPU_LEAST), most)


def batch_on_cpu(total: int, cache_per_token: int, most: int) -> int:
    """Tokens of a batch on a CPU: a step costs little more for more rows, above all one that writes
    reasons, so as many as a twentieth of the memory holds."""
    tokens = int(total / 20 / (RESERVE * PADDED * cache_per_token)) // _STEP * _STEP
    return min(max(tokens, _CPU_LEAST), most)


def _check_quantize(files: ModelFiles, device: str, dtype: str, quantize: Quantize) -> None:
    """Raises ModelError before anything is loaded."""
    if quantize == "fp8":
        _check_float8(device, dtype)
    elif importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"--quantize {quantize}: install the extra: pip install 'jlm[quantize]'")
    if files.gguf or getattr(whole_config(files), "quantization_config", None):
        named = files.gguf or files.name
        raise ModelError(f"--quantize {quantize}: {named} is quantized already")
    if device not in ("cpu", "cuda"):
        raise ModelError(f"--quantize {quantize}: not on {device}; use --device cpu or cuda")
    if any((getattr(text_config(files), name, 0) or 0) > 1 for name in _EXPERTS):
        raise ModelError(
            f"--quantize {quantize}: the experts of {files.name} would stay whole; take more GPUs "
            "(--gpus-per-model), or a smaller model"
        )


def _check_float8(device: str, dtype: str) -> None:
    import torch

    if dtype != "bfloat16":
        raise ModelError(f"--quantize fp8: computes beside it in bfloat16, not in {dtype}")
    on_amd = torch.version.hip is not None  # whose kinds of float8 were not tried
    if device == "cuda" and (on_amd or torch.cuda.get_device_capability() < _FLOAT8_FROM):
        raise ModelError(
            f"--quantize fp8: {torch.cuda.get_device_name()} cannot multiply it; "
            "use --quantize 8bit for less memory"
        )


_FLOAT8_FROM = 8, 9  # Ada
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # as models name them
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.55}  # a weight, its scales included


def weight_bytes(files: ModelFiles, dtype: str, quantize: Quantize | None) -> int:
    """Of the model as it computes, from the size of its files; in GGUF a weight has about half a
    byte."""
    import torch

    size = sum(path.stat().st_size for path in files.weights())
    each = getattr(torch, dtype).itemsize
    if files.gguf:
        return int(size * each / 0.6)
    config = text_config(files)
    n = size / (config.dtype.itemsize if isinstance(config.dtype, torch.dtype) else 2)
    if quantize is None or quantize == "fp8":  # which is made of the whole ones
        return int(n * each)
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return int(max(0, n - ends) * _QUANTIZED_BYTES[quantize] + ends * each)  # those stay whole


def n_weights(files: ModelFiles) -> int:
    """How many weights a model has, about, by the size of its files."""
    return weight_bytes(files, "bfloat16", None) // 2
