"""A judgment to talk about: found in a file, with its sample, and as a person sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.text import Text

from jlm_cli.config import Config
from jlm_cli.errors import At, InputError, RowError, UsageError
from jlm_cli.output import summary_path
from jlm_cli.prompts import Template
from jlm_cli.reading.rows import open_rows
from jlm_cli.reading.schemas import SCHEMAS, parse_row, read_sample
from jlm_cli.reading.source import Source, open_source
from jlm_cli.records import Json, Sample, digest_of, dump, need_text
from jlm_cli.terminal import escaped

_MODES = {"judge": ("verdict", "scores"), "grade": ("score", "expected")}
_NO_JUDGMENT = "is not a judgment; give a file that jlm judge or grade wrote"
_IDS_NAMED = 8  # in a message that says what there is


@dataclass
class _Seen:
    """Of a file's records, what it takes to choose one or to say why not; of many the first few."""

    n: int = 0
    n_of_jlm: int = 0
    n_wanted: int = 0
    wanted: list[Json] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    last_line: int = 0

    def add(self, record: Json, is_wanted: bool) -> None:
        self.n += 1
        self.n_of_jlm += "mode" in record
        self.n_wanted += is_wanted
        if is_wanted and len(self.wanted) <= _IDS_NAMED:
            self.wanted.append(record)
        if record.get("id") is not None and len(self.ids) <= _IDS_NAMED:
            self.ids.append(record["id"])
        if type(line := record.get("line")) is int:
            self.last_line = max(self.last_line, line)


@dataclass(frozen=True)
class RecordChoice:
    """The record a conversation is about: in which file, and by which id or line of the input."""

    judged: str
    row_id: str | None = None
    line: int | None = None

    def find(self) -> Json:
        """The chosen record, which is a judgment. Raises InputError or UsageError."""
        if self.judged == "-":
            raise UsageError("-: standard input is the conversation; name the file")
        seen = _Seen()
        with open_source(self.judged) as source:
            for row in range(len(source)):
                record = _parsed(source, row)
                seen.add(record, self._is_wanted(record))
        if seen.n and not seen.n_of_jlm:
            raise InputError(f"{self.judged}: {_NO_JUDGMENT}")
        if seen.n_wanted == 1:
            return self._checked(seen.wanted[0])
        raise InputError(f"{self.judged}: {self._why_not_one(seen)}")

    def _is_wanted(self, record: Json) -> bool:
        if self.line is not None:
            return bool(record.get("line") == self.line)
        if self.row_id is not None:
            row_id = record.get("id")
            return row_id is not None and self.row_id in (row_id, dump(row_id).decode())
        return True

    def _why_not_one(self, seen: _Seen) -> str:
        ids, n = _named(seen.ids), seen.n_wanted
        if not seen.n:
            return "is empty"
        if n and self.line is None:
            lines = _named([record.get("line") for record in seen.wanted])
            if self.row_id is not None:
                return f"{n} records have the id {self.row_id}; use --line with {lines}"
            which = f"--id with {ids}" if ids else f"--line with {lines}"
            return f"holds {seen.n} records; choose one: {which}"
        if n:
            return f"{n} records are of line {self.line}: files put together; use --id"
        if self.line is not None:
            return f"no record of line {self.line}; the last one is of line {seen.last_line}"
        return f"no record with the id {self.row_id}; there are {ids or 'no ids: use --line'}"

    def _checked(self, record: Json) -> Json:
        line = record.get("line")
        where = f"{self.judged}" if line is None else f"{self.judged}: line {line}"
        if isinstance(error := record.get("error"), dict):
            raise InputError(f"{where}: was not judged ({error.get('code')}); choose another")
        mode = record.get("mode")
        if mode == "rank":
            raise InputError(f"{where}: is of jlm rank; chat talks about one of judge or grade")
        if mode not in _MODES or not {"text", "p", *_MODES[mode]} <= record.keys():
            raise InputError(f"{where}: {_NO_JUDGMENT}")
        return record


def _parsed(source: Source, row: int) -> Json:
    with At(source.where(row)):
        return parse_row(source.read(row))


def _named(values: list[Any]) -> str:
    names = [value if isinstance(value, str) else dump(value).decode() for value in values]
    return ", ".join(names[:_IDS_NAMED]) + (", …" if len(names) > _IDS_NAMED else "")


@dataclass(frozen=True)
class Case:
    """A judgment and what it judged; `record` is what `jlm judge` or `grade` would write."""

    record: Json
    sample: Sample

    @property
    def said(self) -> str:
        """The words of the judge, line and reason."""
        return "\n".join(filter(None, (self.record["text"], self.record["reason"])))

    def judgment(self, template: Template) -> str:
        """All that the judge wrote behind its prompt, in its order."""
        if template.reason_first is None:
            return template.lead + self.said
        said = f"{self.record['reason'] or ''}{template.reason_first}"
        return f"{said}{template.lead}{self.record['text']}"


def case_of(record: Json, config: Config) -> Case:
    """A record of a file with its sample, from the input where the record holds none.

    Raises InputError.
    """
    where = f"line {record.get('line')}"
    if "sample" not in record and not config.inputs:
        raise InputError(f"{where}: holds no sample (--compact); give its --input FILE")
    try:
        if "sample" in record:
            fields = {**record["sample"], "id": record["id"]}
            sample = read_sample(fields, SCHEMAS[0], int(record["line"]))
        else:
            sample = _sample_in(record, config)
        need_text(record["text"], "text")
        if record["reason"] is not None:
            need_text(record["reason"], "reason")
        case = Case({**record, "sample": sample.json()}, sample)
        card(case)  # reads all the rest
    except (RowError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: is not a sound judgment: {error}") from error
    return case


def _sample_in(record: Json, config: Config) -> Sample:
    """The sample of a compact record, in its input."""
    rows = open_rows(config)
    line = record["line"]
    found = [row for row in range(len(rows)) if rows.source.line(row) == line]
    if not found:
        raise InputError(f"{rows.source.name}: has no line {line}: not what was judged")
    sample = rows.sample(found[0])
    if sample.id != record["id"]:
        raise InputError(
            f"{rows.source.where(found[0])}: has another id than the record: not what was judged"
        )
    holds = digest_of(sample.json())
    if record.get("sample_sha256", holds) != holds:
        raise InputError(
            f"{rows.source.where(found[0])}: holds something else than what was judged: another "
            "text, reference or --map; judge without --compact to talk about it"
        )
    return sample


def other_settings(judged: str, model: str, template: str) -> list[str]:
    """What the summary beside a judged file says was otherwise when it was judged."""
    try:
        summary = orjson.loads(summary_path(Path(judged)).read_bytes())
        was = {"model": (summary["model"], model), "template": (summary["template"], template)}
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return []
    return [
        f"judged with {name} {old}, this conversation is with {new}"
        for name, (old, new) in was.items()
        if not set(new.split(" | ")) <= set(old.split(" | "))
    ]


def card(case: Case, brief: int | None = None) -> Text:
    """A judgment for a person; texts longer than `brief` characters are cut."""
    sample, record = case.sample, case.record
    fields = [("Question", sample.question)]
    fields += [(f"Answer {n}", answer) for n, answer in enumerate(sample.answers, start=1)]
    if sample.reference is not None:
        fields.append(("Reference", sample.reference))
    fields.append(("Verdict", _verdict(record)))
    if record["reason"]:
        fields.append(("Reason", record["reason"]))
    text = Text()
    for name, value in fields:
        cut = value if brief is None or len(value) <= brief else value[: brief - 1] + "…"
        body = escaped(cut.strip()).replace("\n", "\n" + " " * 11)
        text.append(f"{name:<11}", "bold").append(f"{body}\n")
    text.rstrip()
    return text


def _verdict(record: Json) -> str:
    names = {"1": "answer 1 is better", "2": "answer 2 is better", "tie": "a tie"}
    if record["mode"] == "grade":
        parts = [f"score {record['text'].strip()}", f"expected {record['expected']:.1f}"]
    else:
        p = ", ".join(f"{name}: {share:.2f}" for name, share in record["p"].items())
        scores = [] if record["scores"] is None else [f"scores {record['text']}"]
        parts = [names[record["verdict"]], *scores, f"p {p}"]
    if "swapped" in record:
        parts.append("in the other order " + names[record["swapped"]["verdict"]])
    if record["flags"]:
        parts.append("flags " + ", ".join(record["flags"]))
    return "; ".join(parts)
