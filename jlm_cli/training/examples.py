"""Lessons as token ids with what of them is learnt, and the order they are learnt in.

Prompts come from the Encoder that judging uses, so that a judge is asked as it was taught.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Lines, Prompt
from jlm_cli.errors import ModelError, RowError
from jlm_cli.modes import GradeMode, PairMode, Templates, View, mode_of
from jlm_cli.prompts import Template
from jlm_cli.records import Sample, verdict_of
from jlm_cli.training.lessons import Lesson, Showing, Teaching

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


@dataclass(frozen=True)
class TaughtTemplates:
    """The templates of lessons: one answer is asked about as `grade` asks, more as `judge` and
    `rank` do; each is shown once, in the order that was drawn."""

    grade: Templates
    compare: Templates

    @classmethod
    def of(cls, name: str | None, explain_first: bool) -> TaughtTemplates:
        """`name` is a template for pairs, or for one answer. Raises UsageError and ModelError."""
        shows_one = name is not None and Templates.named(name).plain.answers_shown == 1

        def config(command: str, own: bool) -> Config:
            return Config(
                inputs=(),
                output=None,
                model="",
                command=command,
                template=name if own else None,
                explain_first=explain_first,
                use_reference=False,  # rows without one are graded by themselves
            )

        grade = mode_of(config("grade", shows_one))
        compare = mode_of(config("judge", not shows_one))
        assert isinstance(grade, GradeMode) and isinstance(compare, PairMode)
        return cls(grade.asked[0].templates, compare.asked[0].templates)

    @property
    def templates(self) -> tuple[Template, ...]:
        return (*self.grade.all, *self.compare.all)

    def views(self, sample: Sample) -> list[View]:
        n = len(sample.answers)
        template = (self.grade if n == 1 else self.compare).choose(sample)
        if template.answers_shown not in (None, n):
            raise RowError("n-answers", f"field answers: {template.name} has no place for {n}")
        return [View(template, tuple(range(1, n + 1)))]

    def smaller_views(self, sample: Sample) -> list[View]:
        return []


class ExampleMaker:
    """Turns showings of lessons into examples for one model."""

    def __init__(
        self, lines: Lines, templates: TaughtTemplates, form: Form, max_length: int | None
    ) -> None:
        """`max_length` in tokens, prompt and target together, within what the model can read."""
        self._lines = lines
        self._vocabulary = lines.vocabulary
        self._templates = templates
        self._form = form
        self._limit = lines.vocabulary.room(max_length) or _NO_LIMIT
        self._endless = Lines(replace(lines.vocabulary, context=None))  # a target follows
        self._unlimited = self._encoder(_NO_LIMIT)

    def make(
        self, lessons: Sequence[Lesson], showings: Sequence[Showing]
    ) -> Iterator[tuple[Showing, Example | RowError]]:
        """Each showing with its example, or why there is none."""
        for start in range(0, len(showings), _AT_ONCE):
            some = showings[start : start + _AT_ONCE]
            shown = [lessons[showing.row].shown(showing) for showing in some]
            prompts = self._unlimited.encode([sample for sample, _ in shown])
            for showing, (sample, teaching), found in zip(some, shown, prompts, strict=True):
                try:
                    yield showing, self._example(sample, teaching, found)
                except RowError as error:
                    yield showing, error

    def _example(
        self, sample: Sample, teaching: Teaching, found: list[Prompt] | RowError
    ) -> Example:
        if isinstance(found, RowError):
            raise found
        (prompt,) = found
        target = self._target(sample, prompt.view.template, teaching)
        if len(prompt.ids) + len(target.ids) > self._limit:
            prompt = self._shortened(sample, prompt.view, len(target.ids))
        return Example(
            np.array([*prompt.ids, *target.ids], np.int32),
            np.array([READ] * len(prompt.ids) + target.roles, np.uint8),
            target.line,
            prompt.flags,
        )

    def _shortened(self, sample: Sample, view: View, room: int) -> Prompt:
        """The prompt with its longer answers cut, so that the target fits behind it."""
        kept_free = self._lines.of(view.template, len(view.shown)).longest  # by the encoder
        (found,) = self._encoder(self._limit - room + kept_free).encode([sample])
        if isinstance(found, RowError):
            raise found
        return found[0]

    def _target(self, sample: Sample, template: Template, teaching: Teaching) -> Target:
        """What is written behind the prompt, read off by the prompt's own last words."""
        text, line, start = self._spell(template, teaching)
        wrap = self._lines.wrap(template)
        tail = template.render(sample)[-1].text if wrap is None else wrap.tail
        end = start + len(line)
        spelling = self._lines.spelling(template)
        before, whole = spelling.locate(tail), spelling.locate(tail + text)
        n = len(before.ids)
        if whole.ids[:n] != before.ids:
            raise ModelError(f"this tokenizer merges {text[:8]!r} across the end of the prompt")
        target = Target([], [], line)
        for token, (place, _) in zip(whole.ids[n:], whole.offsets[n:], strict=True):
            if token in self._vocabulary.special:  # a reason may spell one
                continue
            target.ids.append(token)
            in_line = start - len(template.lead) <= place - len(tail) <= end
            target.roles.append(LINE if in_line else TAUGHT)
        if not text.endswith("\n"):
            target.ids.append(self._vocabulary.ends[0])
            target.roles.append(LINE if template.reason_first else TAUGHT)
        return target

    def _spell(self, template: Template, teaching: Teaching) -> tuple[str, str, int]:
        """The target's text, the line in it, and where that starts.

        A line without a reason ends in its newline: whether more would follow is not taught.
        """
        line, reason = line_of(template, teaching), teaching.reason
        if template.reason_first is not None:
            if not reason:
                raise RowError("no-reason", "the teacher gives no reason to come first")
            text = f"{reason}{template.reason_first}{template.lead}"
            return text + line, line, len(text)
        behind = "\n" if self._form.scores_only or not reason else template.before_reason + reason
        return template.lead + line + behind, line, len(template.lead)

    def _encoder(self, max_length: int) -> Encoder:
        config = Config(inputs=(), output=None, model="", max_length=max_length, max_new_tokens=0)
        return Encoder(self._endless, self._templates, config)


@dataclass(frozen=True)
class Target:
    """What is written behind a prompt: ids with their roles, and the line among them."""

    ids: list[int]
    roles: list[int]
    line: str


def line_of(template: Template, teaching: Teaching) -> str:
    """A teacher's scores as the template's judge writes them: themselves, or who won.

    Raises RowError where it would write no such line.
    """
    if template.verdicts is None:
        for score in teaching.scores:
            if score not in template.values:
                raise RowError("scores-off-scale", f"template {template.name} has no score {score}")
        return teaching.line
    if len(teaching.scores) != 2:
        raise RowError("n-answers", f"template {template.name} tells which of two answers won")
    verdict = verdict_of(tuple(map(float, teaching.scores)))
    if verdict not in template.verdicts:
        raise RowError("no-such-verdict", f"template {template.name} has no verdict {verdict}")
    return template.values[template.verdicts.index(verdict)]


@dataclass(frozen=True)
class Schedule:
    """All that is learnt, in order: places in `examples`, batch after batch.

    `left_out` counts the lessons that gave no example, or not in each showing, by reason;
    `shortened` those whose answers were cut.
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
    epochs: Sequence[Sequence[Showing]],
    maker: ExampleMaker,
    batch: int,
    seed: int,
) -> Schedule:
    """Batches of samples of like length, drawn by the seed alone.

    The number of batches is rounded: the last samples are left out, or the first come again.
    """
    wanted = sorted({showing for epoch in epochs for showing in epoch})
    places: dict[Showing, int] = {}
    examples: list[Example] = []
    left_out: set[tuple[int, str]] = set()
    shortened: set[int] = set()
    for showing, found in maker.make(lessons, wanted):
        if isinstance(found, RowError):
            left_out.add((showing.row, found.code))
            continue
        if any(flag.startswith("truncated") for flag in found.flags):
            shortened.add(showing.row)
        places[showing] = len(examples)
        examples.append(found)
    order: list[int] = []
    rest: list[int] = []
    for epoch, showings in enumerate(epochs):
        there = rest + [places[showing] for showing in showings if showing in places]
        draw = random.Random(f"{seed}/order/{epoch}")
        whole_batches, rest = _in_batches(there, examples, batch, draw)
        order += whole_batches
    order += rest
    steps = max(1, round(len(order) / batch)) if order else 0
    whole = [order[place % len(order)] for place in range(steps * batch)]
    codes = Counter(code for _, code in sorted(left_out))
    return Schedule(examples, whole, batch, codes, len(shortened))


def _in_batches(
    places: list[int], examples: Sequence[Example], batch: int, draw: random.Random
) -> tuple[list[int], list[int]]:
    """Shuffled, then sorted by length within some batches, whose order is shuffled again; and what
    fills no batch, which goes to the next epoch, so that its batches are of like length too."""
    draw.shuffle(places)
    stride = batch * _MEGABATCHES
    batches: list[list[int]] = []
    for start in range(0, len(places), stride):
        near = sorted(places[start : start + stride], key=lambda place: len(examples[place]))
        batches += [near[at : at + batch] for at in range(0, len(near), batch)]
    draw.shuffle(batches)
    full = [place for one in batches if len(one) == batch for place in one]
    return full, [place for one in batches if len(one) < batch for place in one]
