"""What an engine must do, and the loop that judges a batch with it."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from jlm_cli.encoding import Lines, Prompt
from jlm_cli.errors import RowError
from jlm_cli.modes import Reading
from jlm_cli.scoreline import Floats, Grammar, LineDistribution, LineTokens
from jlm_cli.tasks import Task, finish, until_alone
from jlm_cli.walk import DraftToken, Walk

Ids = Sequence[int]
LineDraft = Sequence[DraftToken]


@dataclass(frozen=True)
class Written:
    """Text a model wrote; `cut` where it ran into its limit of tokens; `ids` where it wrote any."""

    text: str
    cut: bool
    ids: Ids = field(default=(), compare=False)


Wrote = Callable[[int], object]


def unheard(n_tokens: int) -> None:
    """For writing that nobody follows."""


class Batch(Protocol):
    """Prompts that an engine reads. Its device may still be at what it was given last."""

    def may_feed(self) -> bool:
        """Whether the device has room for this batch, and little to do yet: what is given to it
        later, be it small and waited for, comes after all that it was given before."""
        ...

    def feed(self) -> bool:
        """Give the device some of the prompts it was not given yet; False when none is left."""
        ...

    def ready(self) -> bool:
        """Whether `known` need not wait."""
        ...

    def known(self) -> list[Floats]:
        """Wait for what was given last: the log-probabilities of the columns behind each drafted
        token, with those behind the prompt in front when the batch has just begun.

        For each row float64 [drafted, columns], normalised over the whole vocabulary.
        """
        ...

    def extend(self, drafts: Sequence[LineDraft]) -> None:
        """Give it more drafted tokens to read, for each row."""
        ...

    def end(self) -> None:
        """Let its memory serve another batch."""
        ...


class Engine(Protocol):
    """A language model that reads and writes token ids, a batch at a time.

    Each method, its batches' too, raises MemoryError where a batch does not fit; a smaller one
    still may. So many batches may be under way `at_once`, as far as there is room: the device is
    then at one while another is looked through.
    """

    at_once: int

    def begin(
        self, prompts: Sequence[Ids], drafts: Sequence[LineDraft], columns: Sequence[int]
    ) -> Batch:
        """A batch of prompts, each with the tokens drafted behind it."""
        ...

    def may_begin(self) -> bool:
        """Whether none of the batches under way waits for its first prompts to be fed."""
        ...

    def forget(self) -> None:
        """Give back the memory kept from batch to batch."""
        ...

    def write(self, prompts: Sequence[Ids], limits: Sequence[int], wrote: Wrote) -> list[Written]:
        """What greedy decoding writes behind each prompt, up to its limit of new tokens.

        `wrote` is told, as it goes on, of how many tokens more.
        """
        ...

    def stream(self, prompt: Ids, limit: int, draw: int = 0) -> Iterator[int]:
        """What is written behind one prompt, token by token, without its end.

        `draw` 0 decodes greedily; any other is the seed of a sample, always the same one.
        """
        ...


@dataclass(frozen=True)
class Judge:
    """An engine with what it needs to know about score lines.

    `new_tokens` is the limit of a reason; `reason` asks for one behind the line, where the
    template does not have it first anyway; `wrote` hears of its tokens.
    """

    engine: Engine
    lines: Lines
    reason: bool
    new_tokens: int
    wrote: Wrote = unheard

    @property
    def at_once(self) -> int:
        """Batches under way; a reason goes on from the batch that was read last."""
        return 1 if self.reason else self.engine.at_once

    def may_begin(self, n_under_way: int) -> bool:
        """Whether another batch may, beside so many. One that waits is enough: taken too early, it
        could not go to another worker."""
        return n_under_way < self.at_once and (not n_under_way or self.engine.may_begin())

    def judge(self, prompts: Sequence[Prompt]) -> list[Reading | RowError]:
        """A batch judged, alone."""
        return finish(self.judging(prompts))

    def judging(self, prompts: Sequence[Prompt]) -> Task[list[Reading | RowError]]:
        """A batch judged; a row that fails is its RowError and leaves the others as they are.

        A batch that memory has no room for is halved, and flagged `split-batch`.
        """
        if self.at_once > 1:
            with suppress(MemoryError):
                return (yield from self._judging(prompts))
            yield until_alone  # another one may have held what it lacked,
            self.engine.forget()  # or left it for the next one
        return (yield from self._alone(prompts))

    def _alone(self, prompts: Sequence[Prompt]) -> Task[list[Reading | RowError]]:
        with suppress(MemoryError):
            return (yield from self._judging(prompts))
        if len(prompts) == 1:
            n = len(prompts[0].ids)
            return [RowError("out-of-memory", f"its {n} tokens do not fit; use --max-length")]
        middle = len(prompts) // 2
        first = yield from self._alone(prompts[:middle])
        second = yield from self._alone(prompts[middle:])
        return [_flagged(reading, "split-batch") for reading in (*first, *second)]

    def _judging(self, prompts: Sequence[Prompt]) -> Task[list[Reading | RowError]]:
        before = self._reasons_before(prompts)
        starts = [
            prompt.ids if first is None else (*prompt.ids, *first.ids)
            for prompt, first in zip(prompts, before, strict=True)
        ]
        tokens = [self.lines.of(p.view.template, len(p.view.shown)) for p in prompts]
        lines = yield from reading_lines(self.engine, starts, tokens)
        behind = self._reasons_behind(prompts, starts, tokens, lines)
        return [
            line if isinstance(line, RowError) else _reading(prompt, line, first or second)
            for prompt, line, first, second in zip(prompts, lines, before, behind, strict=True)
        ]

    def _reasons_before(self, prompts: Sequence[Prompt]) -> list[Reason | None]:
        """What the judge writes before its line, for templates that have the reason first."""
        rows = [n for n, p in enumerate(prompts) if p.view.template.reason_first is not None]
        limits = [
            self._room(prompts[row].ids, behind=self._line_room(prompts[row])) for row in rows
        ]
        written = self._write([prompts[row].ids for row in rows], limits)
        reasons: list[Reason | None] = [None] * len(prompts)
        for row, words in zip(rows, written, strict=True):
            template = prompts[row].view.template
            grammar = template.grammar(len(prompts[row].view.shown))
            marker = template.reason_first or ""
            text = _up_to_line(words.text, marker, grammar)
            found = len(text) < len(words.text)
            ids = self._ids_up_to(words, text + marker if found else text)
            ids += () if found else self._ids_behind(text, marker)
            reasons[row] = Reason(text.strip(), words.cut and not found, ids)
        return reasons

    def _ids_up_to(self, words: Written, start: str) -> tuple[int, ...]:
        """The tokens in which a judge wrote the start of its words, which another spelling of the
        same may not have; spelled anew where none of them ends there."""

        def decoded(n: int) -> str:
            return self.lines.vocabulary.decode(words.ids[:n])

        counts = range(len(words.ids) + 1)
        n = bisect.bisect_left(counts, len(start), key=lambda n: len(decoded(n)))
        if n in counts and decoded(n) == start:
            return tuple(words.ids[:n])
        return tuple(self.lines.vocabulary.locate(start).ids)

    def _ids_behind(self, text: str, marker: str) -> tuple[int, ...]:
        """Of a marker that the judge did not write, as it would follow the text."""
        locate = self.lines.vocabulary.locate
        before, whole = locate(text).ids, locate(text + marker).ids
        fits = whole[: len(before)] == before
        return tuple(whole[len(before) :] if fits else locate(marker).ids)

    def _reasons_behind(
        self,
        prompts: Sequence[Prompt],
        starts: Sequence[Ids],
        tokens: Sequence[LineTokens],
        lines: Sequence[LineDistribution | RowError],
    ) -> list[Reason | None]:
        reasons: list[Reason | None] = [None] * len(prompts)
        if not self.reason:
            return reasons
        judged = [
            (row, [*starts[row], *tokens[row].spell(line.greedy)])
            for row, line in enumerate(lines)
            if isinstance(line, LineDistribution)
            and not prompts[row].view.aspects
            and prompts[row].view.template.reason_first is None
        ]
        written = self._write([ids for _, ids in judged], [self._room(ids) for _, ids in judged])
        for (row, _), words in zip(judged, written, strict=True):
            reasons[row] = Reason(words.text.strip(), words.cut)
        return reasons

    def _write(self, prompts: Sequence[Ids], limits: Sequence[int]) -> list[Written]:
        return self.engine.write(prompts, limits, self.wrote) if prompts else []

    def _room(self, ids: Sequence[int], behind: int = 0) -> int:
        """New tokens that fit: at most `new_tokens`, and no more than the context holds with what
        comes behind them."""
        context = self.lines.vocabulary.context
        left = self.new_tokens if context is None else context - len(ids) - behind
        return max(1, min(self.new_tokens, left))

    def _line_room(self, prompt: Prompt) -> int:
        """Tokens of the longest line behind a reason, with the words that announce it."""
        template = prompt.view.template
        marker = self.lines.vocabulary.locate(template.reason_first or "").ids
        return len(marker) + self.lines.of(template, len(prompt.view.shown)).longest


@dataclass(frozen=True)
class Reason:
    """A reason as written; `ids` where it stands before the line, up to that line."""

    text: str
    cut: bool
    ids: tuple[int, ...] = ()


def _up_to_line(text: str, marker: str, grammar: Grammar) -> str:
    """What stands before the last marker with a valid line behind it; all where there is none."""
    end = len(text)
    while (at := text.rfind(marker, 0, end)) >= 0:
        line = text[at + len(marker) :].strip().split("\n")[0].strip()
        said = line.split() if grammar.verdicts is None else [line]
        if len(said) == grammar.count and set(said) <= set(grammar.values):
            return text[:at]
        end = at
    return text


def _flagged(reading: Reading | RowError, flag: str) -> Reading | RowError:
    if isinstance(reading, RowError) or flag in reading.flags:
        return reading
    return replace(reading, flags=(*reading.flags, flag))


def _reading(prompt: Prompt, line: LineDistribution, reason: Reason | None) -> Reading:
    flags = (*prompt.flags, "reason-cut") if reason and reason.cut else prompt.flags
    words = None if reason is None else reason.text
    return Reading(prompt.view, line, words, len(prompt.ids), flags)


def reading_lines(
    engine: Engine, prompts: Sequence[Ids], tokens: Sequence[LineTokens]
) -> Task[list[LineDistribution | RowError]]:
    """The distribution over score lines behind each prompt."""
    walks = [Walk(line) for line in tokens]
    yield from following(engine, prompts, walks)
    return [_result(walk) for walk in walks]


def following(engine: Engine, prompts: Sequence[Ids], walks: Sequence[Walk]) -> Task[None]:
    """Lead each row's walk to its end; rows of a batch may have lines of different kinds."""
    columns = sorted(set().union(*(walk.tokens.columns for walk in walks)))
    place = {column: n for n, column in enumerate(columns)}
    mine = [[place[column] for column in walk.tokens.columns] for walk in walks]
    batch = engine.begin(prompts, [walk.first_draft() for walk in walks], columns)
    try:
        yield batch.may_feed
        while batch.feed():
            yield batch.may_feed
        while True:
            yield batch.ready
            for walk, own, rows in zip(walks, mine, batch.known(), strict=True):
                walk.read(rows[:, own])
            if not any(drafts := [walk.draft() for walk in walks]):
                return
            batch.extend(drafts)
    finally:
        batch.end()


def _result(walk: Walk) -> LineDistribution | RowError:
    try:
        return walk.result()
    except RowError as error:
        return error


class ReadAtOnce:
    """A batch of an engine that has read what it is given before it goes on.

    `behind(row, paths)` gives the log-probabilities of the columns, [paths, columns], behind a
    row's prompt and each of some paths of drafted tokens; first of the empty path alone.
    """

    def __init__(
        self,
        drafts: Sequence[LineDraft],
        n_columns: int,
        behind: Callable[[int, Sequence[Ids]], Floats],
    ) -> None:
        self._n_columns = n_columns
        self._behind = behind
        self._fed: list[list[int]] = [[] for _ in drafts]
        self._known: list[Floats] = []
        ends = [behind(row, [()]) for row in range(len(drafts))]
        self.extend(drafts)
        self._known = [np.vstack(rows) for rows in zip(ends, self._known, strict=True)]

    def may_feed(self) -> bool:
        return True

    def feed(self) -> bool:
        return False

    def ready(self) -> bool:
        return True

    def known(self) -> list[Floats]:
        return self._known

    def extend(self, drafts: Sequence[LineDraft]) -> None:
        self._known = [self._read(row, draft) for row, draft in enumerate(drafts)]

    def end(self) -> None:
        pass

    def _read(self, row: int, draft: LineDraft) -> Floats:
        fed = self._fed[row]
        fed.extend(token.token for token in draft)
        paths = [[*(fed[slot] for slot in token.path), token.token] for token in draft]
        return self._behind(row, paths) if paths else np.empty((0, self._n_columns))
