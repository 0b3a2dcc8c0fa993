"""Prompt templates: TOML files, rendered in a single pass, so that no answer is ever a template."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jlm_cli.errors import ModelError
from jlm_cli.records import Sample

_FIELD = re.compile(r"\{([a-z_]+)\}")
_KNOWN = {"question", "reference", "answers", "answer", "number", "count", "numbers"}
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# The pair of templates a row takes when none is asked for: without and with a reference.
DEFAULT = "judgelm"
DEFAULT_WITH_REFERENCE = "judgelm-reference"


@dataclass(frozen=True)
class Piece:
    """A stretch of prompt; `field` names the user's field it holds, None for the template's own."""

    text: str
    field: str | None = None


@dataclass(frozen=True)
class Template:
    """A prompt layout. `text` holds {answers} where the `answer` block of each answer goes."""

    name: str
    description: str
    source: str
    text: str
    answer: str

    @property
    def needs_reference(self) -> bool:
        return "{reference}" in self.text

    @property
    def tail(self) -> str:
        """The fixed text the score line follows."""
        return _FIELD.split(self.text)[-1]

    def render(self, sample: Sample) -> list[Piece]:
        """The prompt as pieces; joined, they are the prompt to the byte."""
        return list(self._pieces(self.text, sample, None))

    def _pieces(self, layout: str, sample: Sample, number: int | None) -> Iterator[Piece]:
        # re.split with one group alternates literal text and field names
        for position, part in enumerate(_FIELD.split(layout)):
            if position % 2 == 0:
                yield Piece(part)
            elif part == "answers":
                for n in range(1, len(sample.answers) + 1):
                    yield from self._pieces(self.answer, sample, n)
            else:
                yield _filled(part, sample, number)


def _filled(field: str, sample: Sample, number: int | None) -> Piece:
    n = len(sample.answers)
    match field:
        case "question":
            return Piece(sample.question, "question")
        case "reference":
            return Piece(sample.reference or "", "reference")
        case "answer":
            assert number is not None  # load() admits {answer} in the answer block alone
            return Piece(sample.answers[number - 1], f"answer_{number}")
        case "number":
            return Piece(str(number))
        case "count":
            return Piece(_COUNTS[n] if n < len(_COUNTS) else str(n))
        case _:
            return Piece(" and ".join(filter(None, [", ".join(map(str, range(1, n))), str(n)])))


def folder() -> Path:
    """prompts/ beside the modules (a wheel) or beside the package (a checkout)."""
    here = Path(__file__).resolve().parent
    inside = here / "prompts"
    return inside if inside.is_dir() else here.parent / "prompts"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str) -> Template:
    """A template by name, or by the path of a .toml file. Raises ModelError."""
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not path.is_file():
        raise ModelError(f"--template {name}: not found; there are {', '.join(names())}")
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        texts = {key: str(table[key]) for key in ("description", "source", "text", "answer")}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not a TOML template: {error}") from error
    except KeyError as error:
        raise ModelError(f"{path}: key {error} is missing") from error
    _check_fields(path, texts["text"], _KNOWN - {"answer", "number"})
    _check_fields(path, texts["answer"], {"answer", "number"})
    return Template(path.stem, **texts)


def _check_fields(path: Path, layout: str, known: set[str]) -> None:
    for field in _FIELD.findall(layout):
        if field not in known:
            raise ModelError(f"{path}: field {{{field}}} is unknown; there are {sorted(known)}")
