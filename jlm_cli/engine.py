"""What an engine must do, the loop that judges a batch with it, and an engine for tests."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from jlm_cli.encoding import Prompt, Vocabulary
from jlm_cli.errors import RowError
from jlm_cli.records import Judgment, verdict_of
from jlm_cli.scoreline import LOW_MASS, DraftToken, Floats, LineDistribution, LineTokens, Walk

Ids = Sequence[int]


@dataclass(frozen=True)
class Written:
    """Text a model wrote; `cut` where it ran into its limit of tokens."""

    text: str
    cut: bool


class Engine(Protocol):
    """A language model that reads and writes token ids, a batch at a time.

    Each raises MemoryError where the batch does not fit, and can then take a smaller one.
    """

    def prefill(self, prompts: Sequence[Ids], columns: Sequence[int]) -> Floats:
        """Start a batch: the log-probabilities of `columns` behind each prompt.

        float64 [B, columns], normalised over the whole vocabulary.
        """
        ...

    def extend(self, drafts: Sequence[Sequence[DraftToken]]) -> list[Floats]:
        """Go on with the batch: for each row, [drafted, columns] behind each drafted token."""
        ...

    def write(self, prompts: Sequence[Ids], limits: Sequence[int]) -> list[Written]:
        """What greedy decoding writes behind each prompt, up to its limit of new tokens."""
        ...


@dataclass(frozen=True)
class Order:
    """One order of a sample's answers, ready to be judged; `swapped` where it is the other one."""

    prompt: Prompt
    swapped: bool = False


@dataclass(frozen=True)
class Judge:
    """An engine with what it needs to know about score lines.

    `reason_tokens` is the limit of new tokens for reasons; 0 writes none.
    """

    engine: Engine
    tokens: LineTokens
    vocabulary: Vocabulary
    reason_tokens: int = 0

    def judge(self, orders: Sequence[Order]) -> list[Judgment | RowError]:
        """A batch judged; a row that fails is its RowError and leaves the others as they are.

        A batch that memory has no room for is halved, and flagged `split-batch`.
        """
        with suppress(MemoryError):
            return self._judge(orders)
        if len(orders) == 1:
            n = len(orders[0].prompt.ids)
            return [RowError("out-of-memory", f"its {n} tokens do not fit; take --max-length")]
        middle = len(orders) // 2
        halves = [*self.judge(orders[:middle]), *self.judge(orders[middle:])]
        return [_flagged(judgment, "split-batch") for judgment in halves]

    def _judge(self, orders: Sequence[Order]) -> list[Judgment | RowError]:
        results = read_lines(self.engine, [order.prompt.ids for order in orders], self.tokens)
        judged = [
            result if isinstance(result, RowError) else _judgment(order, result)
            for order, result in zip(orders, results, strict=True)
        ]
        if self.reason_tokens == 0:
            return judged
        return self._with_reasons(orders, results, judged)

    def _with_reasons(
        self,
        orders: Sequence[Order],
        results: Sequence[LineDistribution | RowError],
        judged: list[Judgment | RowError],
    ) -> list[Judgment | RowError]:
        done = [
            (row, [*orders[row].prompt.ids, *self.tokens.spell(result.greedy)])
            for row, result in enumerate(results)
            if isinstance(result, LineDistribution)
        ]
        limits = [self._room(ids) for _, ids in done]
        written = self.engine.write([ids for _, ids in done], limits) if done else []
        for (row, _), words in zip(done, written, strict=True):
            judgment = judged[row]
            assert isinstance(judgment, Judgment)
            flags = (*judgment.flags, "reason-cut") if words.cut else judgment.flags
            judged[row] = replace(judgment, reason=words.text.strip(), flags=flags)
        return judged

    def _room(self, ids: Sequence[int]) -> int:
        """New tokens that fit: at most `reason_tokens`, and no more than the context holds."""
        context = self.vocabulary.context
        left = self.reason_tokens if context is None else context - len(ids)
        return max(1, min(self.reason_tokens, left))


def read_lines(
    engine: Engine, prompts: Sequence[Ids], tokens: LineTokens
) -> list[LineDistribution | RowError]:
    """The distribution over score lines behind each prompt."""
    walks = [Walk(tokens) for _ in prompts]
    follow(engine, prompts, tokens, walks)
    return [_result(walk) for walk in walks]


def follow(
    engine: Engine, prompts: Sequence[Ids], tokens: LineTokens, walks: Sequence[Walk]
) -> None:
    """Lead each row's walk to its end."""
    for walk, known in zip(walks, engine.prefill(prompts, tokens.columns), strict=True):
        walk.read_root(known)
    while any(drafts := [walk.draft() for walk in walks]):
        for walk, rows in zip(walks, engine.extend(drafts), strict=True):
            walk.read(rows)


def _result(walk: Walk) -> LineDistribution | RowError:
    try:
        return walk.result()
    except RowError as error:
        return error


def _flagged(judgment: Judgment | RowError, flag: str) -> Judgment | RowError:
    if isinstance(judgment, RowError) or flag in judgment.flags:
        return judgment
    return replace(judgment, flags=(*judgment.flags, flag))


def _judgment(order: Order, result: LineDistribution) -> Judgment:
    """The one place where answers are put back into the input's numbering."""
    scores, expected = result.scores, result.expected()
    first, second, tie = result.outcome()
    if order.swapped:
        scores, expected, first, second = scores[::-1], expected[::-1], second, first
    flags = ("low-mass",) if result.mass < LOW_MASS else ()
    return Judgment(
        scores=scores,
        verdict=verdict_of(scores),
        p=(first, second, tie),
        expected=expected,
        text=result.text,
        reason=None,
        prompt_tokens=len(order.prompt.ids),
        flags=order.prompt.flags + flags,
    )


class FakeEngine:
    """Scores that depend on nothing but the prompt's bytes: for tests of everything around it.

    Its tokens are bytes; behind a prompt it writes a valid line with probability 0.95. It can
    take its time over each batch (`delay`, seconds), so that a test can reach into a run.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self._delay = delay
        self._seeds: list[bytes] = []
        self._fed: list[list[int]] = []
        self._columns: Sequence[int] = ()

    def prefill(self, prompts: Sequence[Ids], columns: Sequence[int]) -> Floats:
        time.sleep(self._delay)
        self._columns = columns
        self._seeds = [_digest(bytes(prompt)) for prompt in prompts]
        self._fed = [[] for _ in prompts]
        return np.array([self._behind(row, b"") for row in range(len(prompts))])

    def extend(self, drafts: Sequence[Sequence[DraftToken]]) -> list[Floats]:
        return [self._extend_row(row, draft) for row, draft in enumerate(drafts)]

    def write(self, prompts: Sequence[Ids], limits: Sequence[int]) -> list[Written]:
        texts = [f"\nFake reason {_digest(bytes(prompt)).hex()}." for prompt in prompts]
        return [
            Written(text[:limit], len(text) > limit)
            for text, limit in zip(texts, limits, strict=True)
        ]

    def _extend_row(self, row: int, draft: Sequence[DraftToken]) -> Floats:
        fed = self._fed[row]
        fed.extend(token.token for token in draft)
        paths = [bytes([*(fed[slot] for slot in token.path), token.token]) for token in draft]
        known = [self._behind(row, path) for path in paths]
        return np.array(known).reshape(len(draft), len(self._columns))

    def _behind(self, row: int, path: bytes) -> Floats:
        """Log-probabilities of the columns behind the prompt and a path of a score line."""
        wanted = _fake_next(path, self._seeds[row])
        weights = np.array([0.95 if chr(c) == wanted else 0.05 / 300 for c in self._columns])
        log_p: Floats = np.log(weights)
        return log_p


def _fake_next(path: bytes, seed: bytes) -> str:
    """The next character of the line `A B` that a seed stands for."""
    line = f"{1 + seed[0] % 10} {1 + seed[1] % 10}\n"
    text = path.decode("latin-1")
    return line[len(text)] if line.startswith(text) and len(text) < len(line) else "\n"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()
