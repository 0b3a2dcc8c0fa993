"""Engines for models whose attention cannot be packed: they read one row at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Cache

from jlm_cli.engine import Ids, LineDraft, ReadAtOnce
from jlm_cli.hf.attention import computing
from jlm_cli.hf.head import exact
from jlm_cli.hf.memory import within_memory
from jlm_cli.hf.transfers import HostCopy, sent
from jlm_cli.hf.writing import Writer
from jlm_cli.scoreline import Floats

_LAST = (slice(None), -1)  # place of each row
_COPIED = 8192  # tokens of a prompt, times its copies, for the paths that are read at once

Behind = Callable[[int, Sequence[Ids]], Floats]  # of a row's prompt and some paths


class RowByRow(Writer):
    at_once = 1

    @within_memory
    def begin(
        self, prompts: Sequence[Ids], drafts: Sequence[LineDraft], columns: Sequence[int]
    ) -> ReadAtOnce:
        wanted = sent(list(columns), self.device)
        return ReadAtOnce(drafts, len(columns), self._reader(prompts, wanted))

    def _reader(self, prompts: Sequence[Ids], columns: torch.Tensor) -> Behind:
        raise NotImplementedError

    def _each(self, prompt: Ids, paths: Sequence[Ids], columns: torch.Tensor) -> Floats:
        """[paths, columns], by a full pass for each."""
        return np.vstack([self._behind([*prompt, *path], columns) for path in paths])

    @within_memory
    def _behind(self, ids: list[int], columns: torch.Tensor) -> Floats:
        """[1, columns]"""
        with computing(), exact(self.model, columns) as head:
            logits = self.model(sent([ids], self.device), logits_to_keep=1).logits
            return HostCopy(head.log_p(logits, _LAST)).wait()


class CachedEngine(RowByRow):
    """Each prompt is read once; what is drafted goes on from copies of its keys and values."""

    def _reader(self, prompts: Sequence[Ids], columns: torch.Tensor) -> Behind:
        caches: dict[int, Cache] = {}

        def behind(row: int, paths: Sequence[Ids]) -> Floats:
            if row not in caches:
                caches[row], known = self._prefill(prompts[row], columns)
                return known
            length = len(prompts[row])
            if length <= self.up_to < length + max(map(len, paths)):
                return self._each(prompts[row], paths, columns)  # keys would be turned otherwise
            return self._go_on(caches[row], paths, columns)

        return behind

    @within_memory
    def _prefill(self, prompt: Ids, columns: torch.Tensor) -> tuple[Cache, Floats]:
        """A prompt's cache, and what is known behind it, [1, columns]."""
        with computing(), exact(self.model, columns) as head:
            ids = sent([list(prompt)], self.device)
            out = self.model(ids, use_cache=True, logits_to_keep=1)
            cache: Cache = out.past_key_values
            return cache, HostCopy(head.log_p(out.logits, _LAST)).wait()

    @within_memory
    def _go_on(self, cache: Cache, paths: Sequence[Ids], columns: torch.Tensor) -> Floats:
        """[paths, columns]; a path that others begin with is read with one of them."""
        leaves = [path for path in paths if not any(_goes_on(other, path) for other in paths)]
        leaf = [next(n for n, one in enumerate(leaves) if one[: len(p)] == p) for p in paths]
        known: Floats = np.empty((len(paths), len(columns)))
        most = max(1, _COPIED // cache.get_seq_length())
        for at in range(0, len(leaves), most):
            some = leaves[at : at + most]
            longest = max(map(len, some))
            ids = [[*path, *[0] * (longest - len(path))] for path in some]
            here = [n for n in range(len(paths)) if at <= leaf[n] < at + most]
            rows, ends = [leaf[n] - at for n in here], [len(paths[n]) - 1 for n in here]
            with computing(), exact(self.model, columns) as head:
                mine = copy.deepcopy(cache)
                first: Any = torch.zeros(len(some), dtype=torch.int64, device=self.device)
                mine.reorder_cache(first)
                logits = self.model(
                    sent(ids, self.device), past_key_values=mine, logits_to_keep=longest
                ).logits
                known[here] = HostCopy(head.log_p(logits, (rows, ends))).wait()
        return known


def _goes_on(path: Ids, start: Ids) -> bool:
    return len(path) > len(start) and path[: len(start)] == start


class PlainEngine(RowByRow):
    """Scores by a full pass for every path: slow, and right for any causal model."""

    goes_on = False

    def _reader(self, prompts: Sequence[Ids], columns: torch.Tensor) -> Behind:
        return lambda row, paths: self._each(prompts[row], paths, columns)
