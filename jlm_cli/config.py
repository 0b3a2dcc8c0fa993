"""The settings of a run: frozen, made once by the command line, passed whole."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

Overflow = Literal["truncate", "error"]

# What may differ between a run and its resumption without changing a byte of the output.
_NOT_IN_FINGERPRINT = frozenset({"output", "overwrite", "quiet", "print_json", "strict"})


@dataclass(frozen=True)
class Config:
    """One run of `judge`.

    Lengths are in tokens. `output` is None for standard output.
    """

    inputs: tuple[str, ...]
    output: Path | None
    model: str
    command: str = "judge"
    swap: bool = False
    reason: bool = False
    max_new_tokens: int = 512
    reference: Path | None = None
    use_reference: bool = True
    gold: Path | None = None
    template: str | None = None
    device: str | None = None
    dtype: str | None = None
    batch_tokens: int | None = None
    max_length: int | None = None
    on_overflow: Overflow = "truncate"
    schema: str = "auto"
    field_map: tuple[tuple[str, str], ...] = ()
    limit: int | None = None
    overwrite: bool = False
    strict: bool = False
    compact: bool = False
    quiet: bool = False
    print_json: bool = False

    def settings(self) -> dict[str, Any]:
        """Everything that can change a byte of the output, as JSON-ready values."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
            if name not in _NOT_IN_FINGERPRINT
        }

    def fingerprint(self) -> str:
        """SHA-256 over `settings()`, in hex."""
        packed = orjson.dumps(self.settings(), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(packed).hexdigest()
