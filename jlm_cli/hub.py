"""Files from the hub, and what transformers reads of them: locked down and quiet."""

from __future__ import annotations

import gc
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jlm_cli.errors import ModelError

# what transformers, torch and safetensors raise on folders that hold no sound model
LOADING_ERRORS = (
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
LOCKED_DOWN: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}

Say = Callable[[str], None]


def unsaid(note: str) -> None:
    """For notes that nobody reads."""


def from_hub(hub_id: str, revision: str | None, say: Say) -> Path:
    """The folder of a model's files, fetched where they are not there. Raises ModelError."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    what = f"model {hub_id} (there is no such folder here)"
    try:
        if (folder := _fetched(hub_id, revision)) is not None:
            return folder
    except HFValidationError as error:
        raise ModelError(f"model {hub_id}: {error}") from error
    try:
        files = HfApi().model_info(hub_id, revision=revision, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in files}
        wanted = wanted_files(list(sizes))
        say(f"fetching {hub_id}: {sum(sizes[file] for file in wanted) / 1e9:.1f} GB")
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except HfHubHTTPError as error:
        raise ModelError(f"{what}: the hub says: {first_line(error)}") from error
    except (OSError, RuntimeError, ImportError) as error:
        raise ModelError(no_network(what, error)) from error
    except Exception as error:  # the hub's client raises its HTTP library's own errors
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore2"):
            raise
        raise ModelError(no_network(what, error)) from error


def _fetched(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a model that was fetched before; no network is needed for it."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    wanted = None  # of what another program fetched, whatever is there
    with suppress(CachedRepoTreeNotFoundError):
        wanted = wanted_files([f.path for f in get_cached_repo_tree(hub_id, revision=revision)])
    with suppress(LocalEntryNotFoundError, FileNotFoundError):
        return Path(
            snapshot_download(
                hub_id, revision=revision, local_files_only=True, allow_patterns=wanted
            )
        )
    return None


_OWN_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def wanted_files(files: list[str]) -> list[str]:
    """Of a hub folder's files those that are loaded: safetensors before .bin, no code, and no other
    format of weights that stands beside transformers' own."""
    if any(_OWN_WEIGHTS.fullmatch(file) for file in files):
        files = [f for f in files if _OWN_WEIGHTS.fullmatch(f) or not f.endswith(".safetensors")]
    safe = any(file.endswith(".safetensors") for file in files)
    weights = (".safetensors", ".safetensors.index.json") if safe else (".bin", ".bin.index.json")
    texts = (".json", ".model", ".txt", ".jinja", ".toml")
    indexes = (".safetensors.index.json", ".bin.index.json")
    return [
        file
        for file in files
        if "/" not in file
        and (file.endswith(weights) or (file.endswith(texts) and not file.endswith(indexes)))
    ]


def no_network(what: str, error: Exception) -> str:
    return (
        f"{what}: cannot be fetched ({first_line(error)}); "
        "without network, give a model's folder or .gguf file with --model PATH"
    )


def first_line(error: Exception) -> str:
    """What a library complains of, with the second line where the first one announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "Weights only load failed" in lines[0]:
        return "its .bin weights hold more than tensors; that could run code and is not loaded"
    said = lines[:2] if lines and lines[0].endswith(":") else lines[:1]
    return " ".join(said)[:200] or type(error).__name__


@contextmanager
def without_gc() -> Iterator[None]:
    """For what loads libraries and weights, which stay: to look them through again and again takes
    a twentieth of a start."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def quiet_transformers() -> None:
    """Its warnings and bars say nothing that jlm does not say itself."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", module=r"torch\._weights_only_unpickler")
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", module=r"peft\.utils")  # looks for bases on the hub
    getLogger("bitsandbytes").setLevel(ERROR)  # which is imported wherever it is installed
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
