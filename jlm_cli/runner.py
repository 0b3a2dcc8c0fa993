"""A run from its input to its output: survey, plan, judge batch by batch, merge, sum up.

Every worker of a run goes through `work`; the first surveys and plans before, and merges after.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from jlm_cli import devices, loading, models, sharding, vocabularies
from jlm_cli.batching import Plan, make_plan
from jlm_cli.columns import PairTally
from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Lines
from jlm_cli.engine import Judge
from jlm_cli.errors import (
    EXIT_OK,
    GO_ON,
    Ended,
    InputError,
    JlmError,
    RowError,
    SystemFailure,
    UsageError,
)
from jlm_cli.journal import (
    Journal,
    begun,
    first_difference,
    folder_of,
    naming,
    write_stdout,
    write_whole,
)
from jlm_cli.modes import Mode, Reading, flags_of, identity, mode_of
from jlm_cli.output import MADE_WITH, check_output, good_rows, summary_path
from jlm_cli.records import Json, Sample, dump, dump_indented, judged_record
from jlm_cli.report import Report, Written, exit_status, spoken
from jlm_cli.rows import Rows, open_rows
from jlm_cli.source import spool_stdin
from jlm_cli.standings import TALLIES, Tally
from jlm_cli.summary import summary_of
from jlm_cli.survey import AT_ONCE, Survey, encoded, take_survey
from jlm_cli.tasks import Task, in_turn

_RECORDS_SHOWN = 13
_OF_A_MACHINE = {"model", "batch_tokens"}  # its copy of the weights, its memory
_PLAN = "plan.npz"

Judged = tuple[int, bytes]  # a row's number and its record


@dataclass(frozen=True)
class Run:
    """What a run works with, before any weight is loaded."""

    config: Config
    rows: Rows
    files: models.ModelFiles
    mode: Mode
    lines: Lines
    encoder: Encoder
    compute: devices.Compute


def start(config: Config) -> int:
    """Do what a command line asks for; the exit status. Raises JlmError."""
    if config.inline is not None:
        return run_inline(config, config.inline)
    return preflight(config) if config.plan else run(config)


def run_inline(config: Config, inline: tuple[str, ...]) -> int:
    """Judge one question from the command line and print what was said."""
    question, *answers = inline
    with tempfile.TemporaryDirectory(prefix="jlm-") as scratch:
        given = Path(scratch) / "question"
        given.write_bytes(dump({"question": question, "answers": answers}) + b"\n")
        output = Path(scratch) / "said.jsonl"
        there = replace(config, inputs=(str(given),), inline=None, output=output)
        status = start(replace(there, quiet=True, print_json=False))
        if config.plan:
            return status
        record = orjson.loads(output.read_bytes())
    if "error" in record:
        raise InputError(record["error"]["message"].removeprefix(f"{given}:1: "))
    sys.stdout.write(dump(record).decode() + "\n" if config.print_json else spoken(record))
    return status


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
    except (KeyboardInterrupt, Ended):
        if config.output is not None and begun(folder_of(config.output)):
            Report(config.quiet).note(f"ended; what is done is kept: {GO_ON}")
        raise
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
        with _kept(config):
            _judge_share(now, journal, workers, report)
        workers.finish()
        return EXIT_OK
    with locked(config.partial), _kept(config):
        check_output(config)  # once more: another run may just have finished
        n_left = _begin(now, journal, report)
        _judge_share(now, journal, workers, report)
        workers.finish()
        _write_output(now, journal)
        return _sum_up(now, journal, report, n_left, time.monotonic() - started)


@contextmanager
def _kept(config: Config) -> Iterator[None]:
    """A full disk or a failing one ends a run, not its results."""
    try:
        yield
    except OSError as error:
        failure = SystemFailure.of(error)
        if config.output is None:
            raise failure from error
        raise SystemFailure(f"{failure}; what is done is kept: {GO_ON}") from error


def open_run(config: Config, report: Report) -> Run:
    """Input, schema, tokenizer and templates of a run. Raises JlmError."""
    mode_of(config)  # what is asked for wrongly is told before a model is fetched
    rows = open_rows(config)
    files = models.find(config.model, report.note)
    mode = mode_of(config, files.template)
    compute = devices.choose_compute(files, config)
    report.note(f"model {files.name} on {compute.device} in {compute.dtype}")
    lines = Lines(vocabularies.load_vocabulary(files))
    return Run(config, rows, files, mode, lines, Encoder(lines, mode, config), compute)


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
    facts = {**_facts_of(now, survey), "rows_done": _n_done(now)}
    if now.config.print_json:
        write_stdout(iter([dump_indented({**facts, **now.compute.sizes()})]))
    else:
        report.plan(facts, now.compute)
    return EXIT_OK


def _n_done(now: Run) -> int:
    """Rows that the same command, given before, has left to go on from."""
    if now.config.output is None or not begun(folder := folder_of(now.config.output)):
        return 0
    journal = Journal(folder)
    ours = first_difference(journal.facts(), _fingerprint(now)) is None
    return journal.n_records() if ours else 0


def _facts_of(now: Run, survey: Survey) -> Json:
    """What a survey found, for people and for programs."""
    tokens = np.asarray(survey.tokens, np.int64)
    measured = survey.n_with_gold > 0 or now.config.gold is not None
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
        "rows_without_gold": len(survey.rows) - survey.n_with_gold if measured else 0,
        "rows_with_unreadable_gold": survey.n_unreadable_gold,
        "rows_without_id": survey.n_without_id,
        "rows_with_a_double_id": survey.n_double_ids,
        "batches": len(plan_of(now, survey)),
    }


def plan_of(now: Run, survey: Survey) -> Plan:
    return make_plan(survey.rows, survey.tokens, survey.groups, now.compute.batch_tokens)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this run alone; the lock dies with its owner. A folder in which no run
    was begun goes with it."""
    lock = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{folder}: another run is writing there") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from error
    with held:
        try:
            yield
        except BaseException:
            if not begun(folder):
                with suppress(OSError):
                    lock.unlink()
                    folder.rmdir()
            raise


def _begin(now: Run, journal: Journal, report: Report) -> int:
    """Survey all rows, and leave for every worker the plan of what is still to be judged; how many
    rows that are."""
    left = np.ones(len(now.rows), bool)
    facts = _fingerprint(now)
    output = now.config.output if now.config.retry_errors else None
    good = None if output is None else good_rows(output, now.rows, facts)
    done = journal.begin(facts, discard=now.config.overwrite)
    left[done] = False
    if good is not None:
        _keep(now, journal, good & left)
        left[good] = False
    if not left.all():
        report.note(f"going on: {int((~left).sum())} of {len(left)} rows are done")
    try:
        survey = take_survey(
            now.rows,
            now.encoder,
            lambda errors: journal.append([one for one in errors if left[one[0]]]),
        )
    except InputError:  # of --strict: nothing is judged yet that a mended input could go on from
        if not len(done):
            journal.remove()
        raise
    report.preflight(_facts_of(now, survey))
    gold, n_known = now.rows.gold, survey.n_with_gold + survey.n_unreadable_gold
    if gold is not None and survey.rows and not n_known:
        first = now.rows.sample(survey.rows[0]).id
        report.note(f"no row has gold: {gold.missing(first, 'gold')}")
    plan = plan_of(now, survey)
    todo = [number for number in range(len(plan)) if left[plan.batch(number)].any()]
    draft = journal.folder / "plan.tmp.npz"
    with naming(draft):
        np.savez(draft, order=plan.order, cuts=plan.cuts, todo=np.array(todo, np.int64), left=left)
        draft.replace(journal.folder / _PLAN)
    return int(left.sum())


def _keep(now: Run, journal: Journal, good: NDArray[np.bool_]) -> None:
    """Take the good records of the output over, a few at a time."""
    assert now.config.output is not None
    with now.config.output.open("rb") as records:
        kept = ((row, raw.rstrip(b"\n")) for row, raw in enumerate(records) if good[row])
        while some := list(islice(kept, AT_ONCE)):
            journal.append(some)


def _fingerprint(now: Run) -> Json:
    """All that can change a byte of the output, by the names that a refusal gives."""
    return {
        **now.config.settings(),
        **now.compute.settings(),
        "input": now.rows.source.sha256(),
        "reference": None if now.rows.references is None else now.rows.references.sha256,
        "gold": None if now.rows.gold is None else now.rows.gold.sha256,
        "model": now.files.identity(),
        "template": identity(now.mode.templates),
        **devices.versions(),
    }


def _judge_share(now: Run, journal: Journal, workers: sharding.Workers, report: Report) -> None:
    """Judge batches until none is left."""
    workers.ready()
    if workers.rank > 0:
        journal.check(_fingerprint(now), but=_OF_A_MACHINE)
    with np.load(journal.folder / _PLAN) as saved:
        plan, todo, left = Plan(saved["order"], saved["cuts"]), saved["todo"], saved["left"]
    if workers.rank >= len(todo):  # the others take what there is; no weights are loaded for none
        return
    engine = loading.load_engine(now.files, now.lines.vocabulary, now.compute, report.note)
    with report.bar(int(left[plan.order].sum())) as bar:
        config, written = now.config, Written(bar)
        judge = Judge(engine, now.lines, config.reason, config.max_new_tokens, written.add)

        def batches() -> Iterator[list[int]]:
            while (place := workers.take()) < len(todo):
                yield [row for row in plan.batch(int(todo[place])) if left[row]]

        for records in judged_batches(now, batches(), judge):
            journal.append(records)
            bar.update(workers.count(len(records)) - bar.n)
    journal.close()


def judged_batches(
    now: Run, batches: Iterable[Sequence[int]], judge: Judge
) -> Iterator[list[Judged]]:
    """The records of batches, as they are done; as many are under way as the engine takes."""
    return in_turn((_judging(now, batch, judge) for batch in batches), judge.at_once)


def _judging(now: Run, batch: Sequence[int], judge: Judge) -> Task[list[Judged]]:
    found = list(encoded(now.rows, now.encoder, batch))
    asked = [p for _, _, prompts in found if not isinstance(prompts, RowError) for p in prompts]
    judged = iter((yield from judge.judging(asked)))
    records = []
    for row, sample, prompts in found:
        if isinstance(prompts, RowError) or sample is None:
            raise InputError(f"{now.rows.source.where(row)}: changed while it was judged")
        results = [next(judged) for _ in prompts]
        records.append((row, dump(_record(now, row, sample, results))))
    return records


def _record(now: Run, row: int, sample: Sample, results: Sequence[Reading | RowError]) -> Json:
    readings = [result for result in results if not isinstance(result, RowError)]
    for failure in results:
        if isinstance(failure, RowError):
            return now.rows.error(row, now.rows.located(row, failure))
    return judged_record(
        sample,
        now.config.command,
        now.mode.record(sample, readings),
        flags_of(readings),
        readings[0].prompt_tokens,
        now.config.compact,
    )


def _write_output(now: Run, journal: Journal) -> None:
    if (n := journal.n_records()) != len(now.rows):
        raise JlmError(f"{journal.folder}: holds {n} of {len(now.rows)} records")
    if now.config.output is None:
        write_stdout(journal.records())
    else:
        write_whole(now.config.output, journal.records())


def _sum_up(now: Run, journal: Journal, report: Report, n_new: int, seconds: float) -> int:
    """Tell the summary to a file, to programs, to a person; the exit status.

    So many rows are new: a run that went on is no faster for what it found done.
    """
    config = now.config
    tally, measured = _measured(now, _records(now.rows, journal))
    summary: Json = {
        "command": config.command,
        "model": now.files.name,
        "template": " | ".join(dict.fromkeys(t.name for t in now.mode.templates)),
        "n_input": len(now.rows),
        "n_blank": now.rows.source.n_blank,
        "n_judged": tally.n_judged,
        "n_error": tally.n_error,
        "seconds": round(seconds, 3),
        "items_per_second": round(min(n_new, tally.n_judged) / seconds, 3) if seconds else None,
        **measured,
        MADE_WITH: journal.facts(),
    }
    packed = dump_indented(summary)
    if config.output is not None:
        write_whole(summary_path(config.output), iter([packed]))
    report.records(list(islice(_records(now.rows, journal), _RECORDS_SHOWN)))
    output = str(config.output or "standard output")
    report.summary(summary, tally, output, now.files.untrained)
    journal.remove()
    if config.print_json:
        write_stdout(iter([packed]))
    return exit_status(tally)


def _measured(now: Run, records: Iterator[Json]) -> tuple[Tally | PairTally, Json]:
    """Counts of all records, and the figures that the command's summary has."""
    tally = TALLIES[now.config.command]()
    for record in records:
        tally.add(record)
    if isinstance(tally, PairTally):
        return tally, summary_of(tally.columns(), now.config.swap)
    return tally, tally.summary()


def _records(rows: Rows, journal: Journal) -> Iterator[Json]:
    """The merged records, each with its sample even where the output leaves it out."""
    for row, raw in enumerate(journal.records()):
        record = orjson.loads(raw)
        if "error" not in record and "sample" not in record:
            record["sample"] = rows.sample(row).json()
        yield record
