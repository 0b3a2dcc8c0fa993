"""The folder of a trained model: its checkpoints, its draft, and how it gets its name at last."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jlm_cli.errors import JlmError
from jlm_cli.files import sync_files

SUMMARY = "train.json"  # in the folder: how it was made, which also tells that jlm made it
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES}
_WHOLE = "whole"  # a file written into a checkpoint behind all others


def mark_whole(checkpoint: Path) -> None:
    (checkpoint / _WHOLE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{_WHOLE}")]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Behind how many steps it was written."""
    return int(checkpoint.name.partition("-")[2])


def draft_of(output: Path) -> Path:
    """Where the finished model is written before it gets its name."""
    return output.with_name(f".{output.name}.tmp")


def put_in_place(draft: Path, output: Path) -> None:
    for path in draft.iterdir():
        path.chmod(0o644)  # safetensors writes for its user alone
    sync_files(draft)
    if output.exists():
        old = output.with_name(f".{output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
        draft.rename(output)
        shutil.rmtree(old)
    else:
        draft.rename(output)


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """A disk that is full becomes one line; what was saved before stays."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_about_writing(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
        raise JlmError(
            f"{folder}: cannot be written: {reason}; make room, then give the same command again"
        ) from error


def _is_about_writing(error: Exception) -> bool:
    """torch.save tells of a full disk by its archive writer, safetensors by an error of its own."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return any(word in str(error) for word in ("inline_container", "I/O error", "IoError"))
