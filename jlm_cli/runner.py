"""A run from its input to its output: survey, plan, judge batch by batch, merge, sum up.

Every worker of a run goes through `work`; the first surveys and plans before, and merges after.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import numpy as np
import orjson

from jlm_cli import loading, sharding
from jlm_cli.batching import Plan
from jlm_cli.config import Config
from jlm_cli.engine import Judge
from jlm_cli.errors import (
    EXIT_OK,
    GO_ON,
    KEPT,
    Ended,
    InputError,
    JlmError,
    RowError,
    SystemFailure,
    UsageError,
)
from jlm_cli.files import naming, scratch, write_stdout, write_whole
from jlm_cli.journal import Journal, begun, folder_of, locked
from jlm_cli.measuring.columns import PairTally
from jlm_cli.measuring.standings import TALLIES, Tally
from jlm_cli.measuring.summary import summary_of
from jlm_cli.modes import Reading, mode_of, record_of
from jlm_cli.output import MADE_WITH, check_output, summary_path
from jlm_cli.planning import tell_plan
from jlm_cli.preflight import Run, facts_of, fingerprint, open_run, plan_of
from jlm_cli.reading.recognition import asked_for
from jlm_cli.reading.rows import Rows
from jlm_cli.reading.source import spool_stdin
from jlm_cli.records import Json, Sample, dump, dump_indented
from jlm_cli.report import Report, TokenCount, exit_status
from jlm_cli.resuming import as_begun, computing_as, go_on
from jlm_cli.survey import Survey, encoded, take_survey
from jlm_cli.tasks import Task, in_turn
from jlm_cli.wording import spoken

_RECORDS_SHOWN = 13
_OF_A_MACHINE = {"model", "batch_tokens"}  # its copy of the weights, its memory
_PLAN = "plan.npz"
_LATE = 60  # seconds

RowRecord = tuple[int, bytes]  # a row's number and its record


def start(config: Config) -> int:
    """Do what a command line asks for; the exit status. Raises JlmError."""
    if config.inline is not None:
        return run_inline(config, config.inline)
    return tell_plan(config) if config.plan else run(config)


def run_inline(config: Config, inline: tuple[str, ...]) -> int:
    """Judge one question from the command line and print what was said."""
    if sharding.started_by_launcher():
        raise UsageError("-Q is one question, which a launcher's processes cannot share")
    question, *answers = inline
    with scratch() as folder:
        given = folder / "question"
        given.write_bytes(dump({"question": question, "answers": answers}) + b"\n")
        output = folder / "said.jsonl"
        there = replace(config, inputs=(str(given),), inline=None, output=output)
        if config.plan:
            return tell_plan(there)
        status = run(replace(there, quiet=True, print_json=False))
        record = orjson.loads(output.read_bytes())
    if "error" in record:
        raise InputError(record["error"]["message"].removeprefix(f"{given}:1: "))
    said = dump(record) + b"\n" if config.print_json else spoken(record).encode()
    write_stdout(iter([said]))
    return status


def run(config: Config) -> int:
    """Judge the whole input, in as many processes as it takes; the exit status. Raises JlmError."""
    mode_of(config)  # names that do not exist are told of before what stands in the way
    if len(config.inputs) < 2:  # fields of several have rules of their own
        asked_for(config.schema, config.field_map)
    check_output(config)
    if sharding.started_by_launcher() and (config.output is None or "-" in config.inputs):
        raise UsageError("processes of a launcher share files, not pipes: name input and output")
    try:
        with scratch() as folder:
            if "-" in config.inputs:
                _tell_of_terminal(config)
                config = replace(config, stdin=spool_stdin(folder / "stdin"))
            partial = folder / "parts" if config.output is None else folder_of(config.output)
            return sharding.run_workers(replace(config, partial=partial), work)
    except (KeyboardInterrupt, Ended):
        if config.output is not None and begun(folder_of(config.output)):
            Report(config.quiet).note(f"ended; {KEPT}")
        elif config.output is None:
            Report(config.quiet).note("ended; of a run to standard output nothing is kept")
        raise


def _tell_of_terminal(config: Config) -> None:
    if sys.stdin is not None and sys.stdin.isatty():
        Report(config.quiet).note("rows are read from this terminal; Ctrl-D ends them")


def work(config: Config, workers: sharding.Workers) -> int:
    """One worker's part of a run; the exit status of all of it for the first worker."""
    started = time.monotonic()
    report = Report(config.quiet or workers.rank > 0)
    now = open_run(config, report)
    assert config.partial is not None
    journal = Journal(config.partial, workers.rank)
    if workers.rank > 0:
        with _told_of_disks(config):
            _judge_share(now, journal, workers, report)
        workers.finish()
        return EXIT_OK
    with locked(config.partial), _told_of_disks(config):
        check_output(config)  # once more: another run may just have finished
        own, now = now, as_begun(now, journal)
        if (threads := now.compute.threads) != own.compute.threads:
            report.note(f"threads: {threads}, as many as the run was begun with")
        n_left, survey = _begin(now, journal, report)
        _judge_share(now, journal, workers, report)
        workers.finish()
        if workers.size > 1:
            _await(lambda: journal.n_records() == len(now.rows))
        _write_output(now, journal)
        return _sum_up(now, journal, report, survey, n_left, time.monotonic() - started)


@contextmanager
def _told_of_disks(config: Config) -> Iterator[None]:
    """A full disk or a failing one ends a run, not its results."""
    try:
        yield
    except OSError as error:
        failure = SystemFailure.of(error)
        if config.output is None:
            raise failure from error
        raise SystemFailure(f"{failure}; {KEPT}") from error


def _begin(now: Run, journal: Journal, report: Report) -> tuple[int, Survey]:
    """Survey all rows, and leave for every worker the plan of what is still to be judged; how many
    rows that are, and the survey."""
    left = go_on(now, journal, report)
    if not left.all():
        report.note(f"going on: {int((~left).sum()):,} of {len(left):,} rows are done")
    try:
        with report.bar(len(now.rows), what="rows surveyed") as bar:
            survey = take_survey(
                now.rows,
                now.encoder,
                lambda errors: journal.append([one for one in errors if left[one[0]]]),
                bar.update,
            )
    except InputError:  # of --strict
        if left.all():  # nothing that a mended input could go on from
            journal.remove()
        raise
    report.preflight(facts_of(now, survey))
    _tell_of_gold(now, survey, report)
    plan = plan_of(now, survey)
    todo = [number for number in range(len(plan)) if left[plan.batch(number)].any()]
    draft = journal.folder / "plan.tmp.npz"
    with naming(draft):
        np.savez(draft, order=plan.order, cuts=plan.cuts, todo=np.array(todo, np.int64), left=left)
        draft.replace(journal.folder / _PLAN)
    return int(left.sum()), survey


def _tell_of_gold(now: Run, survey: Survey, report: Report) -> None:
    """Where a file was given and no row has any."""
    gold, n_known = now.rows.gold, survey.n_with_gold + survey.n_unreadable_gold
    if gold is not None and survey.rows and not n_known:
        first = now.rows.sample(survey.rows[0]).id
        some = any(value is not None for value in gold.by_id.values())
        why = gold.missing(first, "gold") if some else f"there is none in {gold.name}"
        report.note(f"no row has gold: {why}")


def _judge_share(now: Run, journal: Journal, workers: sharding.Workers, report: Report) -> None:
    """Judge batches until none is left."""
    workers.ready()
    if workers.rank > 0:
        _await((journal.folder / _PLAN).exists)
        now = computing_as(now, journal.facts())
        journal.check(fingerprint(now), but=_OF_A_MACHINE)
    with np.load(journal.folder / _PLAN) as saved:
        plan, todo, left = Plan(saved["order"], saved["cuts"]), saved["todo"], saved["left"]
    if workers.rank >= len(todo):  # the others take what there is; no weights are loaded for none
        return
    engine = loading.load_engine(now.files, now.lines.vocabulary, now.compute, report.note)
    with report.bar(int(left[plan.order].sum())) as bar:
        config, written = now.config, TokenCount(bar)
        judge = Judge(engine, now.lines, config.reason, config.max_new_tokens, written.add)

        def batches() -> Iterator[list[int]]:
            while (place := workers.take()) < len(todo):
                yield [row for row in plan.batch(int(todo[place])) if left[row]]

        for records in judged_batches(now, batches(), judge):
            journal.append(records)
            bar.update(workers.count(len(records)) - bar.n)
    journal.close()


def _await(is_there: Callable[[], bool]) -> None:
    """What another machine has written in a common folder may be seen a little later."""
    for _ in range(_LATE):
        if is_there():
            return
        time.sleep(1)


def judged_batches(
    now: Run, batches: Iterable[Sequence[int]], judge: Judge
) -> Iterator[list[RowRecord]]:
    """The records of batches, as they are done; as many are under way as the engine takes."""
    gc.freeze()  # what is there by now stays; to look it through would hold the device up
    try:
        yield from in_turn((_judging(now, batch, judge) for batch in batches), judge.may_begin)
    finally:
        gc.unfreeze()


def _judging(now: Run, batch: Sequence[int], judge: Judge) -> Task[list[RowRecord]]:
    found = list(encoded(now.rows, now.encoder, batch))
    asked = [p for _, _, prompts in found if not isinstance(prompts, RowError) for p in prompts]
    judged = iter((yield from judge.judging(asked)))
    records = []
    for row, sample, prompts in found:
        assert sample is not None and not isinstance(prompts, RowError)  # the survey had them
        results = [next(judged) for _ in prompts]
        records.append((row, dump(_record(now, row, sample, results))))
    return records


def _record(now: Run, row: int, sample: Sample, results: Sequence[Reading | RowError]) -> Json:
    try:
        return record_of(now.mode, now.config.command, sample, results, now.config.compact)
    except RowError as failure:
        return now.rows.error(row, now.rows.located(row, failure))


def _write_output(now: Run, journal: Journal) -> None:
    if (n := journal.n_records()) != len(now.rows):
        raise JlmError(f"{journal.folder}: holds {n} of {len(now.rows)} records; {GO_ON}")
    if now.config.output is None:
        write_stdout(journal.records())
    else:
        journal.check_output(now.config.output)
        summary = summary_path(now.config.output)
        write_whole(now.config.output, journal.records(), instead_of=summary)


def _sum_up(
    now: Run, journal: Journal, report: Report, survey: Survey, n_new: int, seconds: float
) -> int:
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
        "n_unreadable_gold": survey.n_unreadable_gold,
        "seconds": round(seconds, 3),
        "items_per_second": round(min(n_new, tally.n_judged) / seconds, 3),
        **measured,
        MADE_WITH: journal.facts(),
    }
    packed = dump_indented(summary)
    if config.output is not None:
        write_whole(summary_path(config.output), iter([packed]))
    if not config.quiet:
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
    if not isinstance(tally, PairTally):
        return tally, tally.summary()
    swap = now.config.swap
    aspects = {name: summary_of(one.columns(), swap) for name, one in tally.aspects.items()}
    return tally, {
        **summary_of(tally.columns(), swap),
        **({"aspects": aspects} if aspects else {}),
    }


def _records(rows: Rows, journal: Journal) -> Iterator[Json]:
    """The merged records, each with its sample even where the output leaves it out."""
    for row, raw in enumerate(journal.records()):
        record = orjson.loads(raw)
        if "error" not in record and "sample" not in record:
            record["sample"] = rows.sample(row).json()
        yield record
