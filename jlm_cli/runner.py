"""A run from its input to its output: survey, plan, judge batch by batch, merge, sum up.

Every worker of a run goes through `work`; the first surveys and plans before, and merges after.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
from filelock import AcquireReturnProxy, FileLock, Timeout

from jlm_cli import models, sharding
from jlm_cli.batching import Plan, make_plan
from jlm_cli.columns import tally_of
from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Templates, Vocabulary
from jlm_cli.engine import Judge, Order
from jlm_cli.errors import EXIT_OK, InputError, JlmError, RowError, UsageError
from jlm_cli.journal import Journal, folder_of, write_stdout, write_whole
from jlm_cli.records import Json, dump, judged_record
from jlm_cli.report import Report, exit_status
from jlm_cli.rows import Rows, open_rows
from jlm_cli.scoreline import LineTokens
from jlm_cli.source import spool_stdin
from jlm_cli.summary import summary_of
from jlm_cli.survey import Survey, encoded, take_survey

_RECORDS_SHOWN = 13
_PLAN = "plan.npz"


@dataclass(frozen=True)
class Run:
    """What a run works with, before any weight is loaded."""

    config: Config
    rows: Rows
    files: models.ModelFiles
    vocabulary: Vocabulary
    templates: Templates
    line: LineTokens
    encoder: Encoder
    compute: models.Compute


def run(config: Config) -> int:
    """Judge the whole input, in as many processes as it takes; the exit status. Raises JlmError."""
    check_output(config)
    if sharding.started_by_launcher() and (config.output is None or "-" in config.inputs):
        raise UsageError("processes of a launcher share files, not pipes: name input and output")
    scratch = Path(tempfile.mkdtemp(prefix="jlm-"))
    try:
        if "-" in config.inputs:
            config = replace(config, stdin=spool_stdin(scratch / "stdin"))
        partial = scratch if config.output is None else folder_of(config.output)
        return sharding.run_workers(replace(config, partial=partial), work)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def work(config: Config, workers: sharding.Workers) -> int:
    """One worker's part of a run; the exit status of all of it for the first worker."""
    started = time.monotonic()
    report = Report(config.quiet or workers.rank > 0)
    now = open_run(config, report)
    assert config.partial is not None
    journal = Journal(config.partial, workers.rank)
    if workers.rank > 0:
        _judge_share(now, journal, workers, report)
        workers.finish()
        return EXIT_OK
    with _locked(config.partial):
        _begin(now, journal, report)
        _judge_share(now, journal, workers, report)
        workers.finish()
        _write_output(now, journal)
        return _sum_up(now, journal, report, time.monotonic() - started)


def open_run(config: Config, report: Report) -> Run:
    """Input, schema, tokenizer and templates of a run. Raises JlmError."""
    rows = open_rows(config)
    files = models.find(config.model, report.note)
    compute = models.choose_compute(files, config)
    report.note(f"model {files.name} on {compute.device} in {compute.dtype}")
    vocabulary = models.load_vocabulary(files)
    templates = Templates.of(config.template)
    line = models.line_tokens(vocabulary, templates)
    encoder = Encoder(vocabulary, templates, config, line.longest)
    return Run(config, rows, files, vocabulary, templates, line, encoder, compute)


def check_output(config: Config) -> None:
    """Refuse, before anything is loaded, what must not or cannot be written."""
    output = config.output
    if output is None:
        return
    if output.is_dir():
        raise UsageError(f"{output}: is a folder; name a file with --output")
    if any(output.resolve() == Path(name).resolve() for name in config.inputs if name != "-"):
        raise UsageError(f"{output}: is the input; name another file with --output")
    if config.retry_errors and not output.exists():
        raise UsageError(f"{output}: is not there; --retry-errors judges its error records again")
    if output.exists() and not (config.overwrite or config.retry_errors):
        raise UsageError(f"{output}: exists; take --overwrite, or another --output")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}")


def preflight(config: Config) -> int:
    """`--plan`: what a run would do, without loading a weight or writing a file."""
    report = Report(config.quiet)
    if "-" in config.inputs:
        with tempfile.TemporaryDirectory(prefix="jlm-") as scratch:
            stdin = spool_stdin(Path(scratch) / "stdin")
            return _preflight(replace(config, stdin=stdin), report)
    return _preflight(config, report)


def _preflight(config: Config, report: Report) -> int:
    now = open_run(config, report)
    survey = take_survey(now.rows, now.encoder, lambda errors: None)
    report.plan(_facts_of(now, survey), now.compute)
    return EXIT_OK


def _facts_of(now: Run, survey: Survey) -> Json:
    """What a survey found, for people and for programs."""
    tokens = np.asarray(survey.tokens, np.int64)
    return {
        "rows": len(now.rows),
        "blank": now.rows.source.n_blank,
        "schema": now.rows.schema.name,
        "judgeable": len(survey.rows),
        "errors": dict(sorted(survey.errors.items())),
        "tokens": int(tokens.sum()),
        "tokens_median": int(np.median(tokens)) if len(tokens) else 0,
        "tokens_longest_prompt": survey.longest,
        "over_the_context": survey.n_cut + survey.errors["too-long"],
        "missing_references": survey.errors["missing-reference"],
        "rows_without_id": survey.n_without_id,
        "rows_with_a_double_id": survey.n_double_ids,
        "batches": len(_plan_of(now, survey)),
    }


def _plan_of(now: Run, survey: Survey) -> Plan:
    return make_plan(survey.rows, survey.tokens, survey.groups, now.compute.batch_tokens)


def _locked(folder: Path) -> AcquireReturnProxy[FileLock]:
    """Hold the folder for this run alone, while the `with` lasts; the lock dies with its owner."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "lock").acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{folder}: another run is writing there") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from error


def _begin(now: Run, journal: Journal, report: Report) -> None:
    """Survey all rows, and leave for every worker the plan of what is still to be judged."""
    left = np.ones(len(now.rows), bool)
    done = journal.begin(_fingerprint(now), discard=now.config.overwrite)
    left[done] = False
    if now.config.retry_errors and not len(done):
        kept = _good_records(now)
        journal.append(kept)
        left[[row for row, _ in kept]] = False
    if not left.all():
        report.note(f"going on: {int((~left).sum())} of {len(left)} rows are done")
    survey = take_survey(
        now.rows,
        now.encoder,
        lambda errors: journal.append([one for one in errors if left[one[0]]]),
    )
    report.preflight(_facts_of(now, survey))
    plan = _plan_of(now, survey)
    todo = [number for number in range(len(plan)) if left[plan.batch(number)].any()]
    draft = journal.folder / "plan.tmp.npz"
    np.savez(draft, order=plan.order, cuts=plan.cuts, todo=np.array(todo, np.int64), left=left)
    draft.replace(journal.folder / _PLAN)


def _good_records(now: Run) -> list[tuple[int, bytes]]:
    """The judged records of the output. Raises UsageError where it is not of this input."""
    assert now.config.output is not None
    lines = now.config.output.read_bytes().split(b"\n")[:-1]
    if len(lines) != len(now.rows):
        raise UsageError(
            f"{now.config.output}: holds {len(lines)} records, the input {len(now.rows)} rows; "
            "--retry-errors needs the same input"
        )
    good = []
    for row, raw in enumerate(lines):
        record = orjson.loads(raw)
        if record["line"] != now.rows.source.line(row):
            raise UsageError(f"{now.config.output}:{row + 1}: is of another line of the input")
        if "error" not in record:
            good.append((row, raw))
    return good


def _fingerprint(now: Run) -> Json:
    """All that can change a byte of the output, by the names that a refusal gives."""
    return {
        **now.config.settings(),
        **now.compute.settings(),
        "input": now.rows.source.sha256(),
        "model": now.files.identity(),
        "template": now.templates.identity(),
        **models.versions(),
    }


def _judge_share(now: Run, journal: Journal, workers: sharding.Workers, report: Report) -> None:
    """Judge batches until none is left."""
    workers.ready()
    with np.load(journal.folder / _PLAN) as saved:
        plan, todo, left = Plan(saved["order"], saved["cuts"]), saved["todo"], saved["left"]
    if not len(todo):
        return
    engine = models.load_engine(now.files, now.vocabulary, now.compute)
    reason_tokens = now.config.max_new_tokens if now.config.reason else 0
    judge = Judge(engine, now.line, now.vocabulary, reason_tokens)
    with report.bar(int(left[plan.order].sum())) as bar:
        while (place := workers.take()) < len(todo):
            batch = [row for row in plan.batch(int(todo[place])) if left[row]]
            journal.append(judge_batch(now.rows, batch, now.encoder, judge))
            bar.update(workers.count(len(batch)) - bar.n)
    journal.close()


def judge_batch(
    rows: Rows, batch: Sequence[int], encoder: Encoder, judge: Judge
) -> list[tuple[int, bytes]]:
    """The records of one batch, each with its row's number."""
    found = list(encoded(rows, encoder, batch))
    orders = [
        Order(prompt, swapped=place == 1)
        for _, _, prompts in found
        if not isinstance(prompts, RowError)
        for place, prompt in enumerate(prompts)
    ]
    judged = iter(judge.judge(orders))
    records = []
    for row, sample, prompts in found:
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


def _write_output(now: Run, journal: Journal) -> None:
    if (n := journal.n_records()) != len(now.rows):
        raise JlmError(f"{journal.folder}: holds {n} of {len(now.rows)} records")
    if now.config.output is None:
        write_stdout(journal.records())
    else:
        write_whole(now.config.output, journal.records())


def _sum_up(now: Run, journal: Journal, report: Report, seconds: float) -> int:
    """Tell the summary to a file, to programs, to a person; the exit status."""
    config = now.config
    tally = tally_of(_records(now.rows, journal))
    summary: Json = {
        "command": config.command,
        "model": now.files.name,
        "template": now.templates.label,
        "n_input": len(now.rows),
        "n_blank": now.rows.source.n_blank,
        "n_judged": tally.n_judged,
        "n_error": tally.n_error,
        "seconds": round(seconds, 3),
        "items_per_second": round(tally.n_judged / seconds, 3) if seconds else None,
        **summary_of(tally.columns(), config.swap),
    }
    packed = orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if config.output is not None:
        write_whole(summary_path(config.output), iter([packed]))
    if config.print_json:
        write_stdout(iter([packed]))
    report.records(list(islice(_records(now.rows, journal), _RECORDS_SHOWN)))
    output = str(config.output or "standard output")
    report.summary(summary, tally, output, now.files.untrained)
    journal.remove()
    return exit_status(tally)


def summary_path(output: Path) -> Path:
    """OUT without .jsonl, with .metrics.json."""
    stem = output.name.removesuffix(".jsonl")
    return output.with_name(f"{stem}.metrics.json")


def _records(rows: Rows, journal: Journal) -> Iterator[Json]:
    """The merged records, each with its sample even where the output leaves it out."""
    for row, raw in enumerate(journal.records()):
        record = orjson.loads(raw)
        if "error" not in record and "sample" not in record:
            record["sample"] = rows.sample(row).json()
        yield record
