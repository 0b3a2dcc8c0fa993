"""One look at every row before any weight is loaded: sizes, and what will not be judged."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import orjson

from jlm_cli.encoding import Encoder, Prompt
from jlm_cli.errors import InputError, RowError
from jlm_cli.reading.rows import Rows
from jlm_cli.records import Sample, dump

AT_ONCE = 256

Keep = Callable[[list[tuple[int, bytes]]], None]
Encoded = tuple[int, Sample | None, list[Prompt] | RowError]


@dataclass
class Survey:
    """Rows that can be judged, with the tokens of their prompts and a number that is equal where
    prompts begin alike; counts of what the others are."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    errors: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    n_cut: int = 0
    n_without_id: int = 0
    n_with_gold: int = 0
    n_unreadable_gold: int = 0
    first_unreadable: str | None = None  # and why
    n_unshown_references: int = 0
    _ids: array[int] = field(default_factory=lambda: array("q"))

    @property
    def n_double_ids(self) -> int:
        """Rows whose id an earlier row has."""
        return len(self._ids) - len(np.unique(np.asarray(self._ids, np.int64)))

    def add(self, row: int, sample: Sample, prompts: Sequence[Prompt]) -> None:
        self.rows.append(row)
        self.tokens.append(sum(len(prompt.ids) for prompt in prompts))
        self.groups.append(zlib.crc32(f"{sample.question}\0{sample.reference}".encode()))
        self.longest = max(self.longest, *(len(prompt.ids) for prompt in prompts))
        self.n_with_gold += sample.gold is not None
        if sample.no_gold is not None:
            self.n_unreadable_gold += 1
            self.first_unreadable = self.first_unreadable or f"id {sample.id!r}: {sample.no_gold}"
        if sample.reference is not None:
            shown = any(prompt.view.template.needs_reference for prompt in prompts)
            self.n_unshown_references += not shown
        self.n_cut += any(flag.startswith("truncated") for p in prompts for flag in p.flags)
        if sample.id is None:
            self.n_without_id += 1
        else:
            digest = hashlib.blake2b(orjson.dumps(sample.id), digest_size=8).digest()
            self._ids.append(int.from_bytes(digest, "big", signed=True))


def take_survey(
    rows: Rows, encoder: Encoder, keep: Keep, tell: Callable[[int], object] = bool
) -> Survey:
    """Encode every row once; `keep` gets the error records of those that cannot be judged, `tell`
    how many more rows were looked at.

    Raises InputError at the first of them under `--strict`.
    """
    survey = Survey()
    numbers = iter(range(len(rows)))
    while chunk := list(islice(numbers, AT_ONCE)):
        errors = []
        for row, sample, prompts in encoded(rows, encoder, chunk):
            if isinstance(prompts, RowError):
                if rows.config.strict:
                    raise InputError(str(prompts))
                survey.errors[prompts.code] += 1
                errors.append((row, dump(rows.error(row, prompts))))
            elif sample is not None:
                survey.add(row, sample, prompts)
        if errors:
            keep(errors)
        tell(len(chunk))
    return survey


def encoded(rows: Rows, encoder: Encoder, chunk: Sequence[int]) -> Iterator[Encoded]:
    """Each row with its prompts, or with the error that keeps it from being judged."""
    found = list(rows.samples(chunk))
    samples = [sample for _, sample in found if isinstance(sample, Sample)]
    prompts = iter(encoder.encode(samples))
    for row, sample in found:
        if isinstance(sample, RowError):
            yield row, None, sample
            continue
        made = next(prompts)
        yield row, sample, rows.located(row, made) if isinstance(made, RowError) else made
