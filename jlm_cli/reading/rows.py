"""The rows of a run: each line of the input as the Sample that is judged, or as its error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from jlm_cli.config import Config
from jlm_cli.errors import InputError, RowError, UsageError
from jlm_cli.reading.one_model import is_one_models
from jlm_cli.reading.pairing import JOINED, joined
from jlm_cli.reading.recognition import recognise
from jlm_cli.reading.schemas import (
    Schema,
    parse_row,
    read_sample,
    without_reference,
)
from jlm_cli.reading.side_files import (
    Joined,
    are_others,
    are_turned,
    load_gold,
    load_references,
    places_of,
)
from jlm_cli.reading.source import Source, open_source
from jlm_cli.records import Gold, Json, Sample, error_record, why_no_gold

_ANSWERS = {"judge": 2, "grade": 1}  # in a row; `rank` takes any number


@dataclass(frozen=True)
class Rows:
    """An input with its schema and its side files. Rows are numbered from 0, blank lines aside."""

    source: Source
    schema: Schema
    references: Joined | None
    gold: Joined | None
    config: Config

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, row: int) -> Sample:
        """Raises RowError where the line cannot be judged; its message names line and field."""
        try:
            fields = parse_row(self.source.read(row))
            if not self.config.use_reference:
                fields = without_reference(fields)
            sample = read_sample(fields, self.schema, self.source.line(row))
            return self._joined(sample)
        except RowError as error:
            raise self.located(row, error) from None

    def samples(self, rows: Iterable[int]) -> Iterator[tuple[int, Sample | RowError]]:
        for row in rows:
            try:
                yield row, self.sample(row)
            except RowError as error:
                yield row, error

    def located(self, row: int, error: RowError) -> RowError:
        return RowError(error.code, f"{self.source.where(row)}: {error}")

    def error(self, row: int, error: RowError) -> Json:
        """The error record of a row."""
        return error_record(self.id_of(row), self.source.line(row), self.config.command, error)

    def id_of(self, row: int) -> Any:
        """None where it has none, or cannot be read."""
        try:
            return self.schema.id_in(parse_row(self.source.read(row)))
        except RowError:
            return None

    def _joined(self, sample: Sample) -> Sample:
        if not self.config.use_reference:
            sample = replace(sample, reference=None)
        elif self.config.reference_text is not None:
            sample = replace(sample, reference=self.config.reference_text)
        elif self.references is not None:
            reference = self.references.find(sample.id)
            if reference is None:
                raise self.references.missing(sample.id, "reference")
            sample = replace(sample, reference=reference)
        if self.gold is not None:
            gold, why = self._gold_of(sample)
            sample = replace(sample, gold=gold, no_gold=why)
        return sample

    def _gold_of(self, sample: Sample) -> tuple[Gold | None, str | None]:
        """Of the file, and why there is none though it has the id."""
        assert self.gold is not None
        if (found := self.gold.find(sample.id)) is None:
            return None, None
        gold, models, given = found
        if gold is None:
            return None, why_no_gold(given, len(sample.answers))
        if are_others(sample.models or (), models):
            return None, f"it is about {_listed(models)}, the row about {_listed(sample.models)}"
        if are_turned(sample.models or (), models):
            gold = gold.turned()
        elif gold.scores is not None:
            places = places_of(sample.models, models, len(gold.scores))
            gold = replace(gold, scores=tuple(gold.scores[place] for place in places))
        about = 2 if gold.scores is None else len(gold.scores)
        if about != len(sample.answers):
            told = f"{self.gold.name}: gold of {sample.id!r} is about {about} answers"
            raise RowError("bad-value", f"{told}, not {len(sample.answers)}")
        return gold, None


def _listed(models: Iterable[Any] | None) -> str:
    return " and ".join(map(str, models or ()))


def open_rows(config: Config) -> Rows:
    """Raises InputError where a file is not what it should be."""
    source, schema = _source_of(config)
    return Rows(
        source=source,
        schema=schema,
        references=None if config.reference is None else load_references(config.reference),
        gold=None if config.gold is None else load_gold(config.gold, _ANSWERS.get(config.command)),
        config=config,
    )


def _source_of(config: Config) -> tuple[Source, Schema]:
    if len(config.inputs) == 1:
        source = open_source(config.inputs[0], config.limit, config.stdin)
        told = config.field_map or config.schema != "auto"
        if told or not is_one_models(source):
            return source, recognise(source, config.schema, config.field_map)
        if config.command != "grade":
            more = "the files of two models" if config.command == "judge" else "more models' files"
            raise InputError(f"{source.where(0)}: one model's answers; give {more}")
    elif config.schema != "auto":
        raise UsageError("--schema is for one input; several are joined by their ids")
    elif "-" in config.inputs:
        raise InputError("-: standard input cannot be one of several inputs")
    elif len(set(config.inputs)) < len(config.inputs):
        twice = next(name for name in config.inputs if config.inputs.count(name) > 1)
        raise InputError(f"{twice}: the same input is named twice")
    return joined(config.inputs, config.command, config.limit, config.field_map), JOINED
