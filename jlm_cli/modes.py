"""What each command asks of the judge: the views of a sample, and the record of what was said.

A view shows some of a sample's answers, in an order, by a template. `judge` has one view, or two
for both orders; `grade` one; `rank` a list, rotations of it, or all pairs (ranking.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from jlm_cli.config import Config
from jlm_cli.errors import RowError, UsageError
from jlm_cli.prompts import ASPECTS, Aspect, Template, load
from jlm_cli.records import TURNED, Json, Sample, Verdict, digest_of, probabilities_json, rounded
from jlm_cli.scoreline import LOW_MASS, LineDistribution


@dataclass(frozen=True)
class View:
    """One way a sample is shown to the judge.

    `shown` are answer numbers from 1, in the order shown; `aspects` what is asked about, empty
    for the answers as a whole.
    """

    template: Template
    shown: tuple[int, ...]
    aspects: tuple[Aspect, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What the judge said of one view; `reason` where it gave one, before or behind its line."""

    view: View
    line: LineDistribution
    reason: str | None
    prompt_tokens: int
    flags: tuple[str, ...]

    @property
    def all_flags(self) -> tuple[str, ...]:
        low = ("low-mass",) if self.line.mass < LOW_MASS else ()
        return (*self.flags, *low)


class Views(Protocol):
    """How samples are shown."""

    def views(self, sample: Sample) -> list[View]:
        """Raises RowError where the sample is not one for this command."""
        ...

    def smaller_views(self, sample: Sample) -> list[View]:
        """Views to take instead where the first do not fit the context; empty: there are none."""
        ...

    @property
    def templates(self) -> Sequence[Template]:
        """All that it may take."""
        ...


class Mode(Views, Protocol):
    """A command's way with samples."""

    def record(self, sample: Sample, readings: Sequence[Reading]) -> Json:
        """The judged part of a sample's record."""
        ...


def record_of(
    mode: Mode,
    command: str,
    sample: Sample,
    results: Sequence[Reading | RowError],
    compact: bool = False,
) -> Json:
    """The output record of a sample of whose views this was read, keys in the documented order.

    Raises the RowError of a view that could not be judged.
    """
    readings = [result for result in results if isinstance(result, Reading)]
    for failure in results:
        if isinstance(failure, RowError):
            raise failure
    return {
        "id": sample.id,
        "line": sample.line,
        "mode": command,
        **mode.record(sample, readings),
        "flags": sorted({flag for reading in readings for flag in reading.all_flags}),
        "prompt_tokens": readings[0].prompt_tokens,
        "gold": None if sample.gold is None else sample.gold.json(),
        **(_digests_of(sample) if compact else {"sample": sample.json()}),
    }


def _are(n_answers: int) -> str:
    """How many answers there are, and the command for so many."""
    command = {0: "", 1: " (jlm grade)", 2: " (jlm judge)"}.get(n_answers, " (jlm rank)")
    return f"{'is' if n_answers == 1 else 'are'} {n_answers}{command}"


def _digests_of(sample: Sample) -> Json:
    """What tells a compact record's sample, and which records ask the same."""
    return {
        "sample_sha256": digest_of(sample.json()),
        "question_sha256": digest_of(sample.question),
    }


@dataclass(frozen=True)
class Templates:
    """Which template a row takes: rows with a reference, or with an input, have their own."""

    plain: Template
    with_reference: Template
    with_input: Template

    @classmethod
    def named(cls, name: str) -> Templates:
        """A template, with the variants it names itself."""
        plain = load(name)
        return cls(plain, load(plain.with_reference or name), load(plain.with_input or name))

    @classmethod
    def pair(cls, plain: str, with_reference: str) -> Templates:
        return cls(load(plain), load(with_reference), load(plain))

    def choose(self, sample: Sample) -> Template:
        """Raises RowError where the template asks for a reference that the row lacks."""
        if sample.reference is not None:
            return self.with_reference
        template = self.with_input if sample.input else self.plain
        if template.needs_reference:
            raise RowError(
                "missing-reference",
                f"field reference: template {template.name} needs one; give it in the input, by "
                "--reference FILE or --reference-text TEXT, or use --no-reference",
            )
        return template

    @property
    def all(self) -> tuple[Template, ...]:
        return tuple(dict.fromkeys((self.plain, self.with_reference, self.with_input)))


def identity(templates: Sequence[Template]) -> str:
    """SHA-256 of all they say, in hex."""
    said = [
        replace(template, description="", source="", with_reference=None, with_input=None)
        for template in templates
    ]
    return hashlib.sha256(repr(said).encode()).hexdigest()


def writes_first(templates: Sequence[Template]) -> bool:
    """Whether a judge may write a reason before its line."""
    return any(template.reason_first is not None for template in templates)


def arranged(sample: Sample, shown: Sequence[int]) -> Sample:
    """The sample with only the answers that are shown, in that order; gold is left out."""
    answers = tuple(sample.answers[number - 1] for number in shown)
    models = sample.models and tuple(sample.models[number - 1] for number in shown)
    return replace(sample, answers=answers, models=models, gold=None)


def read_aspects(texts: Sequence[str], together: bool) -> tuple[tuple[Aspect, ...], ...]:
    """`--aspect NAME` or `NAME: meaning`; each for itself, or all in one prompt.

    Raises UsageError for a name that is not known and has no meaning given.
    """
    known = {aspect.name: aspect for aspect in ASPECTS}
    found: list[Aspect] = []
    for text in texts:
        name, colon, meaning = (part.strip() for part in text.partition(":"))
        if not (name and (meaning or name in known)):
            raise UsageError(
                f"--aspect {text}: choose from {', '.join(known)}; "
                "an aspect of your own is written 'NAME: what it means'"
            )
        if any(name == aspect.name for aspect in found):
            raise UsageError(f"--aspect {name}: is given twice")
        found.append(Aspect(name, meaning) if colon else known[name])
    if not found:
        return ()
    return (tuple(found),) if together else tuple((aspect,) for aspect in found)


def aspect_name(aspects: Sequence[Aspect]) -> str:
    return ", ".join(aspect.name for aspect in aspects)


def by_answer(view: View, values: Sequence[float]) -> dict[int, float]:
    """Values in the order shown, by the sample's answer numbers: the one place of the way back."""
    return dict(zip(view.shown, values, strict=True))


@dataclass(frozen=True)
class Asked:
    """What is asked about answers: how good they are as a whole, or in some `aspects`."""

    templates: Templates
    aspects: tuple[Aspect, ...] = ()


def _all_templates(asked: Sequence[Asked]) -> tuple[Template, ...]:
    return tuple(template for one in asked for template in one.templates.all)


@dataclass(frozen=True)
class PairMode:
    """`judge`: two answers compared, in one order or both; the whole first, aspects behind it."""

    asked: tuple[Asked, ...]
    swap: bool

    @property
    def templates(self) -> tuple[Template, ...]:
        return _all_templates(self.asked)

    def views(self, sample: Sample) -> list[View]:
        if (n := len(sample.answers)) != 2:
            raise RowError("n-answers", f"field answers: judge takes two answers, here {_are(n)}")
        orders = [(1, 2), (2, 1)] if self.swap else [(1, 2)]
        return [
            View(one.templates.choose(sample), shown, one.aspects)
            for one in self.asked
            for shown in orders
        ]

    def smaller_views(self, sample: Sample) -> list[View]:
        return []

    def record(self, sample: Sample, readings: Sequence[Reading]) -> Json:
        each = 2 if self.swap else 1
        groups = [readings[n : n + each] for n in range(0, len(readings), each)]
        aspects = {
            aspect_name(group[0].view.aspects): _pair_json(group, with_reason=False)
            for group in groups[1:]
        }
        return {
            **_pair_json(groups[0], with_reason=True),
            **({"aspects": aspects} if aspects else {}),
        }


@dataclass(frozen=True)
class Comparison:
    """A reading of two answers, in the sample's numbering; no scores where the judge has none."""

    scores: tuple[float, ...] | None
    verdict: Verdict
    p: tuple[float, float, float]
    expected: tuple[float, ...] | None

    @classmethod
    def of(cls, reading: Reading) -> Comparison:
        line, shown = reading.line, reading.view.shown
        scores, expected, verdict = line.scores, line.expected(), line.verdict()
        first, second, tie = line.outcome()
        if shown[0] > shown[1]:
            scores, expected = scores and scores[::-1], expected and expected[::-1]
            verdict = TURNED[verdict]
            first, second = second, first
        return cls(scores, verdict, (first, second, tie), expected)

    def json(self) -> Json:
        return {
            "scores": None if self.scores is None else list(self.scores),
            "verdict": self.verdict,
            "p": probabilities_json(self.p),
            "expected": None if self.expected is None else rounded(self.expected),
        }


def _pair_json(readings: Sequence[Reading], with_reason: bool) -> Json:
    """One order, or both with what they come to."""
    parts = []
    for reading in readings:
        said: Json = {**Comparison.of(reading).json(), "text": reading.line.text}
        parts.append({**said, "reason": reading.reason} if with_reason else said)
    if len(readings) == 1:
        return parts[0]
    given, swapped = (Comparison.of(reading) for reading in readings)
    return {
        **parts[0],
        "swapped": parts[1],
        "consistent": given.verdict == swapped.verdict,
        "combined": _combined(given, swapped),
    }


def _combined(given: Comparison, swapped: Comparison) -> Json:
    """Both orders as one judgment: a conflict is a tie (PandaLM protocol), p is averaged."""
    first, second, tie = ((a + b) / 2 for a, b in zip(given.p, swapped.p, strict=True))
    both = zip(given.expected or (), swapped.expected or (), strict=True)
    expected = rounded(tuple((a + b) / 2 for a, b in both))
    return {
        "verdict": given.verdict if given.verdict == swapped.verdict else "tie",
        "p": probabilities_json((first, second, tie)),
        "expected": expected if given.expected is not None else None,
    }


@dataclass(frozen=True)
class GradeMode:
    """`grade`: one answer, against a reference that has the score 10, or by itself."""

    asked: tuple[Asked, ...]
    pass_mark: float | None

    @property
    def templates(self) -> tuple[Template, ...]:
        return _all_templates(self.asked)

    def views(self, sample: Sample) -> list[View]:
        if (n := len(sample.answers)) != 1:
            raise RowError("n-answers", f"field answers: grade takes one answer, here {_are(n)}")
        return [View(one.templates.choose(sample), (1,), one.aspects) for one in self.asked]

    def smaller_views(self, sample: Sample) -> list[View]:
        return []

    def record(self, sample: Sample, readings: Sequence[Reading]) -> Json:
        whole, *rest = readings
        record = {**_grade_json(whole), "reason": whole.reason}
        if self.pass_mark is not None:
            record["pass"] = record["score"] >= self.pass_mark
        if (label := whole.view.template.label(record["score"])) is not None:
            record["label"] = label
        if rest:
            record["aspects"] = {
                aspect_name(reading.view.aspects): _grade_json(reading) for reading in rest
            }
        return record


def _grade_json(reading: Reading) -> Json:
    scores, expected = reading.line.scores, reading.line.expected()
    assert scores is not None and expected is not None  # _misfit() refuses verdict grammars
    said = zip(reading.line.texts, reading.line.p, strict=True)
    p = {text: round(float(share), 6) for (text,), share in said}
    values = [value for value in reading.view.template.values if p.get(value) or "." not in value]
    return {
        "score": scores[0],
        "expected": rounded(expected)[0],
        "p": {value: p.get(value, 0.0) for value in sorted(values, key=float)},
        "text": reading.line.text,
    }


_DEFAULTS = {
    "judge": ("judgelm", "judgelm-reference"),
    "rank": ("judgelm", "judgelm-reference"),
    "grade": ("grade-no-reference", "grade"),
}


def mode_of(config: Config, taught: str | None = None) -> Mode:
    """The mode of a run; `taught` is the template that its judge learnt with, taken where it is
    one for the command and nothing else is asked for.

    Raises UsageError and ModelError where the options do not fit.
    """
    from jlm_cli.ranking import RankMode

    main, aspects = _templates(config, taught)
    if config.command == "rank":
        return RankMode(main, config.method, config.permute, config.compare)
    each = read_aspects(config.aspects, config.aspects_together)
    asked = (Asked(main), *(Asked(aspects, some) for some in each))
    if config.command == "grade":
        _check_pass_mark(config.pass_mark, main)
        return GradeMode(asked, config.pass_mark)
    return PairMode(asked, config.swap)


def _check_pass_mark(mark: float | None, templates: Templates) -> None:
    """Raises UsageError for one that no answer could reach."""
    for template in templates.all:
        if mark is not None and mark > (most := max(map(float, template.values))):
            raise UsageError(f"--pass-mark {mark:g}: {template.name} gives {most:g} at most")


def _templates(config: Config, taught: str | None) -> tuple[Templates, Templates]:
    plain, with_reference = _DEFAULTS[config.command]
    if config.command == "grade" and config.use_reference:
        plain = with_reference  # a row without a reference is then an error that says so
    main = Templates.pair(plain, with_reference)
    aspects = Templates.pair(f"{plain}-aspects", f"{with_reference}-aspects")
    if config.explain_first:
        main = Templates.pair(f"{plain}-explain-first", f"{with_reference}-explain-first")
    elif taught is not None and _misfit(load(taught), config) is None:
        main = Templates.named(taught)
    if config.template is not None:
        own = Templates.named(config.template)
        if config.aspects and own.plain.uses("aspects"):
            aspects = own
        else:
            main = own
    if config.asks_for_references and not any(t.needs_reference for t in main.all):
        raise UsageError(
            f"template {main.plain.name} shows no reference; use one that does, or --no-reference"
        )
    for template in main.all:
        if misfit := _misfit(template, config):
            raise UsageError(f"--template {template.name}: {misfit}")
    for template in aspects.all if config.aspects else ():
        if misfit := _misfit_of_line(template, config):
            raise UsageError(f"--template {template.name}: {misfit}")
    return main, aspects


def _misfit(template: Template, config: Config) -> str | None:
    """Why a template is not one for the command, if it is not."""
    if template.uses("aspects"):
        return "its {aspects} need --aspect"
    return _misfit_of_line(template, config)


def _misfit_of_line(template: Template, config: Config) -> str | None:
    """Why its line is not about as many answers as the command shows, if it is not."""
    shows = template.answers_shown
    if shows is not None and shows != {"judge": 2, "grade": 1}.get(config.command):
        return f"shows {shows} answers; it is not for {config.command}"
    if config.command == "grade" and shows is None:
        return "compares answers; grade takes one that shows {answer_1} alone"
    if template.verdicts is not None and config.command != "judge":
        return "says which of two is better; it is for judge"
    return None
