"""The settings of a run: frozen, made once by the command line, passed whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jlm_cli.errors import UsageError

Overflow = Literal["truncate", "error"]
OnInjection = Literal["flag", "neutralize", "error"]
Quantize = Literal["8bit", "4bit", "fp8"]
Method = Literal["auto", "listwise", "pairwise"]

_JSON_BITS = 63
TIE_WITHIN = 3  # characters; the longest-answer baseline calls such a pair a tie
_FILES = {"inputs", "reference", "gold", "model", "template"}  # compared by their contents
_CHOSEN = {"device", "dtype", "batch_tokens"}  # compared by what was chosen where none is named
_CHANGES_NOTHING = {
    *("output", "partial", "stdin", "overwrite", "retry_errors", "quiet", "print_json"),
    *("strict", "plan", "workers", "gpus"),
}


@dataclass(frozen=True)
class Config:
    """One run of `judge`, `grade` or `rank`.

    Lengths are in tokens. `output` is None for standard output; `partial` is the folder the
    results gather in, `stdin` where standard input was put so that every worker can read it.
    """

    inputs: tuple[str, ...]
    output: Path | None
    model: str
    command: str = "judge"
    inline: tuple[str, ...] | None = None  # a question and its answers, instead of inputs
    swap: bool = False
    reason: bool = False
    explain_first: bool = False
    aspects: tuple[str, ...] = ()
    aspects_together: bool = False
    method: Method = "auto"
    permute: int = 0
    compare: bool = False
    pass_mark: float | None = None
    max_new_tokens: int = 512
    reference: Path | None = None
    reference_text: str | None = None
    use_reference: bool = True
    gold: Path | None = None
    template: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: Quantize | None = None
    workers: int | None = None
    gpus: int | None = None
    gpus_per_model: int = 1
    batch_tokens: int | None = None
    max_length: int | None = None
    on_overflow: Overflow = "truncate"
    on_injection: OnInjection = "flag"
    schema: str = "auto"
    field_map: tuple[tuple[str, str], ...] = ()
    limit: int | None = None
    overwrite: bool = False
    retry_errors: bool = False
    plan: bool = False
    strict: bool = False
    compact: bool = False
    quiet: bool = False
    print_json: bool = False
    partial: Path | None = None
    stdin: Path | None = None

    def __post_init__(self) -> None:
        refuse_huge(vars(self))
        if self.workers is not None and (self.gpus is not None or self.device in ("cuda", "mps")):
            raise UsageError("--workers is for processes on the CPU; use --gpus, or --device cpu")
        if self.gpus is not None and self.device in ("cpu", "mps"):
            raise UsageError(f"--gpus and --device {self.device} exclude each other")

    @property
    def asks_for_references(self) -> bool:
        """By an option, not only in rows."""
        return self.reference is not None or self.reference_text is not None

    def settings(self) -> dict[str, Any]:
        """The options that can change a byte of the output, but for those that are compared by what
        they come to (preflight.fingerprint)."""
        left_out = _CHANGES_NOTHING | _FILES | _CHOSEN
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def refuse_huge(options: Mapping[str, Any]) -> None:
    """Raises UsageError for a number that JSON has no room for."""
    for name, value in options.items():
        if isinstance(value, int) and value.bit_length() > _JSON_BITS:
            raise UsageError(f"--{name.replace('_', '-')} {value}: is too large")


def file_sha256(path: Path) -> str:
    """In hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class MetricsConfig:
    """One run of `metrics`; `tie_within` is in characters, no file is written where it is None."""

    predictions: tuple[str, ...]
    protocol: str = "judgelm"
    gold: Path | None = None
    reversed: Path | None = None
    samples: Path | None = None
    abstain: float | None = None
    tie_within: int = TIE_WITHIN
    disagreements: Path | None = None
    html: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    latex: Path | None = None
    print_json: bool = False
    quiet: bool = False
    stdin: Path | None = None
