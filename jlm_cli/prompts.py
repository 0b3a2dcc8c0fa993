"""Prompt templates: TOML files, rendered in a single pass, so that no answer is ever a template."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jlm_cli.errors import ModelError
from jlm_cli.records import VERDICTS, Sample, Verdict, field_of
from jlm_cli.scoreline import SCORES, Grammar

_FIELD = re.compile(r"\{([A-Za-z_]+(?:_\d+)?)\}")
_ANSWER = re.compile(r"answer_[1-9]\d?")
_SCORE = re.compile(r"\d+(\.\d+)?")
_IN_ANSWER = {"answer", "number"}
_IN_TEXT = {"question", "instruction", "input", "reference", "accepted", "answers"} | {
    "count",
    "numbers",
    "aspects",
    "definitions",
}
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VARIANTS = {"with_reference", "with_input"}
_LINE_KEYS = {"values", "verdicts"}
_KEYS = {
    "description",
    "source",
    "text",
    "answer",
    "lead",
    "before_reason",
    "reason_first",
    "chat_system",
    "line",
    "labels",
    "base",
    "replace",
} | _VARIANTS
_TEXTS = _KEYS - {"line", "labels", "replace"}


@dataclass(frozen=True)
class Piece:
    """A stretch of prompt; `field` names the user's field it holds, None for the template's own."""

    text: str
    field: str | None = None


@dataclass(frozen=True)
class Aspect:
    """One quality that answers are judged by; `meaning` explains a word of the user's own."""

    name: str
    meaning: str = ""


ASPECTS = tuple(map(Aspect, ("factuality", "fluency", "novelty", "helpfulness")))  # Table 16


@dataclass(frozen=True)
class Template:
    """A prompt layout, and the shape of what the judge writes behind it.

    `text` holds {answers} where the `answer` block of each answer goes, or {answer_1} and so on.
    A judge writes its line at once, behind `lead`, with the reason behind `before_reason`; or its
    reason first, up to the last `reason_first`, and the line behind that. `values` are what it
    may write for an answer, or, with `verdicts`, for all of them. `chat_system` (maybe empty) has
    the prompt go through the model's chat template. `labels` name the least score of each grade,
    highest first. `with_reference` and `with_input` are the templates of rows that have such: the
    name of one, or the path of a file.
    """

    name: str
    description: str
    source: str
    text: str
    answer: str = ""
    lead: str = ""
    before_reason: str = "\n"
    reason_first: str | None = None
    chat_system: str | None = None
    values: tuple[str, ...] = SCORES
    verdicts: tuple[Verdict, ...] | None = None
    labels: tuple[tuple[str, float], ...] = ()
    with_reference: str | None = None
    with_input: str | None = None

    def uses(self, field: str) -> bool:
        return f"{{{field}}}" in self.text

    @property
    def needs_reference(self) -> bool:
        return self.uses("reference") or self.uses("accepted")

    @property
    def answers_shown(self) -> int | None:
        """How many answers it shows; None for as many as there are."""
        return None if self.uses("answers") else len(set(re.findall(r"\{answer_\d+\}", self.text)))

    @property
    def tail(self) -> str:
        """The fixed text the line follows; of a chat prompt, the model's own comes behind it."""
        return self.reason_first or _FIELD.split(self.text)[-1]

    def grammar(self, n_answers: int) -> Grammar:
        count = 1 if self.verdicts is not None else n_answers
        return Grammar(count, self.lead, self.values, self.verdicts)

    def label(self, score: float) -> str | None:
        return next((name for name, least in self.labels if score >= least), None)

    def render(self, sample: Sample, aspects: Sequence[Aspect] = ()) -> list[Piece]:
        """The prompt as pieces; joined, they are the prompt to the byte."""
        return list(self._pieces(sample, aspects))

    def _pieces(self, sample: Sample, aspects: Sequence[Aspect]) -> Iterator[Piece]:
        for literal, field in _parts(self.text):
            yield Piece(literal)
            if field == "answers":
                for n in range(1, len(sample.answers) + 1):
                    for between, name in _parts(self.answer):
                        yield Piece(between)
                        if name is not None:
                            yield _in_answer(name, sample, n)
            elif field is not None:
                yield _filled(field, sample, aspects)


def _in_answer(field: str, sample: Sample, n: int) -> Piece:
    return Piece(str(n)) if field == "number" else Piece(sample.answers[n - 1], f"answer_{n}")


@cache
def _parts(layout: str) -> tuple[tuple[str, str | None], ...]:
    """Literal text, each with the name of the field that follows it."""
    parts: list[str | None] = [*_FIELD.split(layout), None]
    return tuple(zip(parts[::2], parts[1::2], strict=True))  # type: ignore[arg-type]


def _filled(field: str, sample: Sample, aspects: Sequence[Aspect]) -> Piece:
    n = len(sample.answers)
    match field:
        case "accepted":
            return Piece(accepted(sample.reference or ""), "reference")
        case "count":
            return Piece(_COUNTS[n] if n < len(_COUNTS) else str(n))
        case "numbers":
            return Piece(_enumerated([str(number) for number in range(1, n + 1)]))
        case "aspects":
            return Piece(_enumerated([aspect.name for aspect in aspects]))
        case "definitions":
            meant = [a for a in aspects if a.meaning]
            return Piece("".join(f" Here, {a.name} means: {a.meaning}." for a in meant))
        case _:  # one of the sample's: load() admits no other
            return Piece(field_of(sample, field), field)


def _enumerated(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def accepted(reference: str) -> str:
    """MM-Vet's ground truth as one answer: the first alternative, or all parts joined."""
    if "<OR>" in reference:
        return reference.split("<OR>")[0]
    return reference.replace("<AND>", " and ")


def folder() -> Path:
    """prompts/ beside the modules (a wheel) or beside the package (a checkout)."""
    here = Path(__file__).resolve().parent
    inside = here / "prompts"
    return inside if inside.is_dir() else here.parent / "prompts"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.toml"))


@cache
def load(name: str) -> Template:
    """A template by name, or by the path of a .toml file. Raises ModelError."""
    path = _path_of(name)
    table = _table(path, name)
    if unknown := sorted(table.keys() - _KEYS):
        there = ", ".join(sorted(_KEYS))
        raise ModelError(f"{path}: key '{unknown[0]}' is unknown; there are {there}")
    for key in ("description", "source", "text"):
        if key not in table:
            raise ModelError(f"{path}: key '{key}' is missing")
    texts = {key: table[key] for key in _TEXTS & table.keys() - {"base"}}
    texts |= {key: _beside(path, texts[key]) for key in _VARIANTS & texts.keys()}
    if texts.get("reason_first") == "":
        raise ModelError(f"{path}: key 'reason_first' is what ends the reason; it cannot be empty")
    values, verdicts = _line_of(path, table.get("line", {}))
    labels = _labels_of(path, table.get("labels", {}))
    template = Template(path.stem, **texts, values=values, verdicts=verdicts, labels=labels)
    _check_fields(path, template)
    _check_answers(path, template)
    return template


def own_files(name: str) -> list[Path]:
    """The files that a template is read from and that are the user's own: what it changes, and its
    variants, are in the same folder. The template is known to be sound."""
    found: list[Path] = []
    todo = [name]
    while todo:
        one = todo.pop()
        if not one.endswith(".toml") or (path := Path(one)) in found:
            continue
        found.append(path)
        table = tomllib.loads(path.read_text("utf-8-sig"))
        todo += [_beside(path, table[key]) for key in sorted({"base", *_VARIANTS} & table.keys())]
    return found


def _path_of(name: str) -> Path:
    return Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"


def _table(path: Path, name: str, variants: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a file, on top of those of the template it is a variant of."""
    if not path.is_file():
        raise ModelError(f"--template {name}: not found; choose from {', '.join(names())}")
    try:
        table = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not a TOML template: {error}") from error
    for key in sorted(_TEXTS & table.keys()):
        if not isinstance(table[key], str):
            raise ModelError(f"{path}: key '{key}' needs a text")
    if "base" not in table:
        return table
    below = _beside(path, table["base"])
    if path in variants:
        raise ModelError(f"{path}: is a variant of itself")
    base = _table(_path_of(below), below, (*variants, path))
    if "text" not in base:
        raise ModelError(f"{below}: key 'text' is missing")
    changes = table.get("replace", [])
    if not (isinstance(changes, list) and all(map(_is_change, changes))):
        raise ModelError(f"{path}: each [[replace]] needs the texts old and new")
    for change in changes:
        if base["text"].count(change["old"]) != 1:
            raise ModelError(f"{path}: not once in {table['base']}: {change['old'][:60]!r}")
        base["text"] = base["text"].replace(change["old"], change["new"])
    return base | table


def _is_change(given: Any) -> bool:
    known = isinstance(given, dict) and given.keys() == {"old", "new"}
    return known and all(isinstance(text, str) for text in given.values())


def _line_of(path: Path, line: Any) -> tuple[tuple[str, ...], tuple[Verdict, ...] | None]:
    """What the judge may write for an answer, and what that means where it names a winner."""
    is_table = isinstance(line, dict) and line.keys() <= _LINE_KEYS
    if not (is_table and all(isinstance(one, list) for one in line.values())):
        raise ModelError(f"{path}: [line] is a table with lists of values and verdicts alone")
    values = tuple(map(str, line.get("values", SCORES)))
    verdicts = tuple(line["verdicts"]) if "verdicts" in line else None
    if verdicts is not None and (
        len(verdicts) != len(values) or any(one not in VERDICTS for one in verdicts)
    ):
        raise ModelError(f"{path}: [line] needs a verdict 1, 2 or tie for each of its values")
    if verdicts is None:
        fit = all(map(_SCORE.fullmatch, values)) and len(set(map(float, values))) == len(values)
    else:
        fit = all(one and one == one.strip() and one.isprintable() for one in values)
    if not values or len(set(values)) < len(values) or not fit:
        raise ModelError(
            f"{path}: [line] needs values that differ, with no space at their ends; numbers where "
            "no verdicts are"
        )
    return values, verdicts


def _labels_of(path: Path, labels: Any) -> tuple[tuple[str, float], ...]:
    if not (isinstance(labels, dict) and all(type(one) in (int, float) for one in labels.values())):
        raise ModelError(f"{path}: [labels] need a least score each, a number")
    highest_first = sorted(labels.items(), key=lambda item: -item[1])
    return tuple((name, float(least)) for name, least in highest_first)


def _beside(path: Path, name: str) -> str:
    """A variant of a template: by name, or a file in the same folder."""
    if name.endswith(".toml") and Path(name).name != name:
        raise ModelError(f"{path}: {name} has to lie in the same folder, named without it")
    beside = str(path.with_name(name)) if name.endswith(".toml") else name
    if not _path_of(beside).is_file():
        raise ModelError(f"{path}: template {name} is not found; choose from {', '.join(names())}")
    return beside


def _check_fields(path: Path, template: Template) -> None:
    for layout, known in ((template.text, _IN_TEXT), (template.answer, _IN_ANSWER)):
        for field in _FIELD.findall(layout):
            if field not in known and not (known is _IN_TEXT and _ANSWER.fullmatch(field)):
                there = ", ".join(f"{{{name}}}" for name in sorted(known))
                raise ModelError(f"{path}: field {{{field}}} is unknown; there are {there}")


def _check_answers(path: Path, template: Template) -> None:
    """A prompt without the answers would be judged as well as any."""
    if template.uses("answers"):
        if "{answer}" not in template.answer:
            raise ModelError(
                f"{path}: key 'answer' needs a text with {{answer}}; {{answers}} repeats it"
            )
        return
    named = {int(number) for number in re.findall(r"\{answer_(\d+)\}", template.text)}
    if not named or named != set(range(1, len(named) + 1)):
        raise ModelError(
            f"{path}: text does not show the answers; write {{answers}}, or {{answer_1}} and so on"
        )
