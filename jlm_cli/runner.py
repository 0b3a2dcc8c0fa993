"""A run from its input to its output: survey, plan, judge batch by batch, merge, sum up."""

from __future__ import annotations

import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson

from jlm_cli import models
from jlm_cli.batching import Plan, make_plan
from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Prompt, Templates
from jlm_cli.engine import Judge, Order
from jlm_cli.errors import InputError, RowError, UsageError
from jlm_cli.journal import Journal, folder_of, write_stdout, write_whole
from jlm_cli.metrics import Tally, summary_of, tally_of
from jlm_cli.records import Json, Sample, dump, judged_record
from jlm_cli.report import Report, exit_status
from jlm_cli.rows import Rows, open_rows
from jlm_cli.scoreline import Grammar, LineTokens

_SURVEYED_AT_ONCE = 256
_RECORDS_SHOWN = 13


@dataclass
class Survey:
    """What one look at every row told: sizes in tokens of those that can be judged."""

    rows: array[int]
    tokens: array[int]
    groups: array[int]
    n_errors: int = 0


def run(config: Config) -> int:
    """Judge the whole input; the exit status. Raises JlmError."""
    report = Report(config.quiet)
    _check_output(config)
    started = time.monotonic()
    rows = open_rows(config)
    files = models.find(config.model, report.note)
    report.note(f"model {files.name}, {len(rows)} rows of schema {rows.schema.name}")
    vocabulary = models.load_vocabulary(files)
    templates = Templates.of(config.template)
    line = LineTokens.build(
        Grammar(),
        templates.plain.tail,
        lambda text: list(vocabulary.locate(text).ids),
        models.line_ends(vocabulary),
    )
    encoder = Encoder(vocabulary, templates, config, line.longest)
    with Journal(folder_of(config.output)) as journal:
        survey = _survey(rows, encoder, journal)
        if survey.rows:
            plan = make_plan(survey.rows, survey.tokens, survey.groups, _budget(config, files))
            engine = models.load_engine(files, vocabulary, config)
            judge = Judge(engine, line, vocabulary, config.max_new_tokens if config.reason else 0)
            _judge_all(rows, plan, encoder, judge, journal, report)
        _write_output(config, journal)
        tally = tally_of(_records(rows, journal))
        head: Json = {"command": config.command, "model": files.name, "template": templates.label}
        summary = _summary(config, head, rows, tally, time.monotonic() - started)
        _finish(
            config,
            report,
            summary,
            tally,
            list(islice(_records(rows, journal), _RECORDS_SHOWN)),
            files,
        )
        journal.remove()
    return exit_status(tally)


def _check_output(config: Config) -> None:
    """Refuse, before anything is loaded, what must not or cannot be written."""
    output = config.output
    if output is None:
        return
    if output.is_dir():
        raise UsageError(f"{output}: is a folder; name a file with --output")
    if any(output.resolve() == Path(name).resolve() for name in config.inputs if name != "-"):
        raise UsageError(f"{output}: is the input; name another file with --output")
    if output.exists() and not config.overwrite:
        raise UsageError(f"{output}: exists; take --overwrite, or another --output")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}")


def summary_path(output: Path) -> Path:
    """OUT without .jsonl, with .metrics.json."""
    stem = output.name.removesuffix(".jsonl")
    return output.with_name(f"{stem}.metrics.json")


def _budget(config: Config, files: models.ModelFiles) -> int:
    if config.batch_tokens is not None or files.name == models.FAKE:
        return config.batch_tokens or models.batch_tokens(files, "cpu", "float32")
    device = models.choose_device(config.device)
    return models.batch_tokens(files, device, models.choose_dtype(config.dtype, device))


def _survey(rows: Rows, encoder: Encoder, journal: Journal) -> Survey:
    """Encode every row once for its size; rows that cannot be judged are journalled as errors."""
    survey = Survey(array("Q"), array("Q"), array("Q"))
    numbers = iter(range(len(rows)))
    while chunk := list(islice(numbers, _SURVEYED_AT_ONCE)):
        errors = []
        for row, sample, prompts in _encoded(rows, encoder, chunk):
            if isinstance(prompts, RowError):
                if rows.config.strict:
                    raise InputError(str(prompts))
                errors.append((row, dump(rows.error(row, prompts))))
            elif sample is not None:
                survey.rows.append(row)
                survey.tokens.append(sum(len(prompt.ids) for prompt in prompts))
                survey.groups.append(zlib.crc32(f"{sample.question}\0{sample.reference}".encode()))
        survey.n_errors += len(errors)
        if errors:
            journal.append(errors)
    return survey


def _encoded(
    rows: Rows, encoder: Encoder, chunk: list[int]
) -> Iterator[tuple[int, Sample | None, list[Prompt] | RowError]]:
    """Each row with its prompts, or with the error that keeps it from being judged."""
    found = list(rows.samples(chunk))
    samples = [sample for _, sample in found if isinstance(sample, Sample)]
    prompts = iter(encoder.encode(samples))
    for row, sample in found:
        if isinstance(sample, RowError):
            yield row, None, sample
            continue
        encoded = next(prompts)
        yield row, sample, rows.located(row, encoded) if isinstance(encoded, RowError) else encoded


def _judge_all(
    rows: Rows, plan: Plan, encoder: Encoder, judge: Judge, journal: Journal, report: Report
) -> None:
    with report.bar(len(plan.order)) as bar:
        for batch in plan:
            journal.append(judge_batch(rows, batch, encoder, judge))
            bar.update(len(batch))


def judge_batch(
    rows: Rows, batch: list[int], encoder: Encoder, judge: Judge
) -> list[tuple[int, bytes]]:
    """The records of one batch, each with its row's number."""
    encoded = list(_encoded(rows, encoder, batch))
    orders = [
        Order(prompt, swapped=place == 1)
        for _, _, prompts in encoded
        if not isinstance(prompts, RowError)
        for place, prompt in enumerate(prompts)
    ]
    judged = iter(judge.judge(orders))
    records = []
    for row, sample, prompts in encoded:
        if isinstance(prompts, RowError) or sample is None:
            raise InputError(f"{rows.source.where(row)}: changed while it was judged")
        results = [next(judged) for _ in prompts]
        failures = [result for result in results if isinstance(result, RowError)]
        if failures:
            record = rows.error(row, rows.located(row, failures[0]))
        else:
            given, *other = [result for result in results if not isinstance(result, RowError)]
            record = judged_record(
                sample, rows.config.command, given, other[0] if other else None, rows.config.compact
            )
        records.append((row, dump(record)))
    return records


def _write_output(config: Config, journal: Journal) -> None:
    if config.output is None:
        write_stdout(journal.records())
    else:
        write_whole(config.output, journal.records())


def _records(rows: Rows, journal: Journal) -> Iterator[Json]:
    """The merged records, each with its sample even where the output leaves it out."""
    for row, raw in enumerate(journal.records()):
        record = orjson.loads(raw)
        if "error" not in record and "sample" not in record:
            record["sample"] = rows.sample(row).json()
        yield record


def _summary(config: Config, head: Json, rows: Rows, tally: Tally, seconds: float) -> Json:
    return {
        **head,
        "n_input": len(rows),
        "n_blank": rows.source.n_blank,
        "n_judged": tally.n_judged,
        "n_error": tally.n_error,
        "seconds": round(seconds, 3),
        "items_per_second": round(tally.n_judged / seconds, 3) if seconds else None,
        **summary_of(tally, config.swap),
    }


def _finish(
    config: Config,
    report: Report,
    summary: Json,
    tally: Tally,
    first: list[Json],
    files: models.ModelFiles,
) -> None:
    """Tell the summary: to a file, to programs, to a person."""
    packed = orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if config.output is not None:
        write_whole(summary_path(config.output), iter([packed]))
    if config.print_json:
        write_stdout(iter([packed]))
    report.records(first)
    report.summary(summary, tally, str(config.output or "standard output"), files.untrained)
