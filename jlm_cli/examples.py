"""Lessons as token ids with what of them is learnt, and the order they are learnt in.

Prompts come from the Encoder that judging uses, so that a judge is asked as it was taught.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Prompt, Templates, Vocabulary
from jlm_cli.errors import ModelError, RowError
from jlm_cli.lessons import Lesson, Teaching, View
from jlm_cli.records import Sample

Ids = NDArray[np.int32]
Roles = NDArray[np.uint8]

READ, TAUGHT, LINE = 0, 1, 2  # the prompt; what is learnt; of that, the score line with its end
_NO_LIMIT = 1 << 30
_AT_ONCE = 1000  # views tokenised together
_MEGABATCHES = 16  # batches within which samples are sorted by length


@dataclass(frozen=True)
class Form:
    """What is written behind the prompt: the score line before the reason, or behind it (paper,
    Table 11), or alone."""

    explain_first: bool = False
    scores_only: bool = False


@dataclass(frozen=True)
class Example:
    """A prompt and what is to be written behind it: `ids` and `roles`, both [tokens].

    `line` is the score line, `flags` what was done to make the prompt fit.
    """

    ids: Ids
    roles: Roles
    line: str
    flags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


class ExampleMaker:
    """Turns views of lessons into examples for one model."""

    def __init__(
        self, vocabulary: Vocabulary, templates: Templates, form: Form, max_length: int | None
    ) -> None:
        """`max_length` in tokens, prompt and target together, within what the model can read."""
        self._vocabulary = vocabulary
        self._templates = templates
        self._form = form
        limits = (max_length, vocabulary.context, _NO_LIMIT)
        self._limit = min(limit for limit in limits if limit)
        self._unlimited = Encoder(vocabulary, templates, self._config(_NO_LIMIT), 0)

    def make(
        self, lessons: Sequence[Lesson], views: Sequence[View]
    ) -> Iterator[tuple[View, Example | RowError]]:
        """Each view with its example, or why there is none."""
        for start in range(0, len(views), _AT_ONCE):
            some = views[start : start + _AT_ONCE]
            shown = [lessons[view.row].shown(view) for view in some]
            prompts = self._unlimited.encode([sample for sample, _ in shown])
            for view, (sample, teaching), found in zip(some, shown, prompts, strict=True):
                try:
                    yield view, self._example(sample, teaching, found)
                except RowError as error:
                    yield view, error

    def _example(
        self, sample: Sample, teaching: Teaching, found: list[Prompt] | RowError
    ) -> Example:
        if isinstance(found, RowError):
            raise found
        ids, roles = self._target(sample, teaching)
        (prompt,) = found
        if len(prompt.ids) + len(ids) > self._limit:
            prompt = self._shortened(sample, len(ids))
        return Example(
            np.array([*prompt.ids, *ids], np.int32),
            np.array([READ] * len(prompt.ids) + roles, np.uint8),
            teaching.line,
            prompt.flags,
        )

    def _shortened(self, sample: Sample, room: int) -> Prompt:
        """The prompt with its longer answers cut, so that the target fits behind it."""
        encoder = Encoder(self._vocabulary, self._templates, self._config(self._limit), room)
        (found,) = encoder.encode([sample])
        if isinstance(found, RowError):
            raise found
        return found[0]

    def _target(self, sample: Sample, teaching: Teaching) -> tuple[list[int], list[int]]:
        """The ids behind the prompt, and their roles."""
        text, start = self._spell(teaching)
        tail = self._templates.choose(sample).tail
        end = start + len(teaching.line)
        before, whole = self._vocabulary.locate(tail), self._vocabulary.locate(tail + text)
        n = len(before.ids)
        if whole.ids[:n] != before.ids:
            raise ModelError(f"this tokenizer merges {text[:8]!r} across the end of the prompt")
        ids, roles = [], []
        for token, (place, _) in zip(whole.ids[n:], whole.offsets[n:], strict=True):
            if token in self._vocabulary.special:  # a reason may spell one
                continue
            ids.append(token)
            roles.append(LINE if start <= place - len(tail) <= end else TAUGHT)
        if not text.endswith("\n"):
            ids.append(self._vocabulary.ends[0])
            roles.append(LINE if self._form.explain_first else TAUGHT)
        return ids, roles

    def _spell(self, teaching: Teaching) -> tuple[str, int]:
        """The target's text, and where in it the score line starts.

        A line without a reason ends in its newline: whether more would follow is not taught.
        """
        line, reason = teaching.line, teaching.reason
        if self._form.explain_first:
            if not reason:
                raise RowError("no-reason", "--explain-first: the teacher gives no reason")
            return f"{reason}\n{line}", len(reason) + 1
        return f"{line}\n" if self._form.scores_only or not reason else f"{line}\n{reason}", 0

    def _config(self, max_length: int) -> Config:
        return Config(inputs=(), output=None, model="", max_length=max_length)


@dataclass(frozen=True)
class Schedule:
    """All that is learnt, in order: places in `examples`, batch after batch.

    `left_out` counts the views that gave no example, by reason; `shortened` those whose answers
    were cut.
    """

    examples: Sequence[Example]
    order: Sequence[int]
    batch: int
    left_out: Counter[str]
    shortened: int

    @property
    def steps(self) -> int:
        return len(self.order) // self.batch

    def lines(self) -> Counter[str]:
        """How often each score line is learnt."""
        return Counter(self.examples[place].line for place in self.order)

    def entropy(self) -> float:
        """Of the score lines, in nats: the loss of a model that knows how often each is right,
        and nothing of the answers."""
        counts = np.array(list(self.lines().values()), float)
        share = counts / counts.sum()
        return float(-(share * np.log(share)).sum())


def make_schedule(
    lessons: Sequence[Lesson],
    epochs: Sequence[Sequence[View]],
    maker: ExampleMaker,
    batch: int,
    seed: int,
) -> Schedule:
    """Batches of samples of like length, drawn by the seed alone.

    The number of batches is rounded: the last samples are left out, or the first come again.
    """
    wanted = sorted({view for views in epochs for view in views}, key=_view_key)
    places: dict[View, int] = {}
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for view, found in maker.make(lessons, wanted):
        if isinstance(found, RowError):
            left_out[found.code] += 1
        else:
            places[view] = len(examples)
            examples.append(found)
    order: list[int] = []
    for epoch, views in enumerate(epochs):
        there = [places[view] for view in views if view in places]
        order += _in_batches(there, examples, batch, random.Random(f"{seed}/order/{epoch}"))
    steps = max(1, round(len(order) / batch)) if order else 0
    whole = [order[place % len(order)] for place in range(steps * batch)]
    shortened = sum(any(flag.startswith("truncated") for flag in e.flags) for e in examples)
    return Schedule(examples, whole, batch, left_out, shortened)


def _view_key(view: View) -> tuple[int, tuple[int, ...], bool]:
    return (view.row, view.order, view.with_reference)


def _in_batches(
    places: list[int], examples: Sequence[Example], batch: int, draw: random.Random
) -> list[int]:
    """Shuffled, then sorted by length within some batches, whose order is shuffled again."""
    draw.shuffle(places)
    stride = batch * _MEGABATCHES
    batches: list[list[int]] = []
    for start in range(0, len(places), stride):
        near = sorted(places[start : start + stride], key=lambda place: len(examples[place]))
        batches += [near[at : at + batch] for at in range(0, len(near), batch)]
    draw.shuffle(batches)
    # a batch that is not full goes last, so that the others keep their cuts
    batches.sort(key=lambda one: len(one) < batch)
    return [place for one in batches for place in one]
