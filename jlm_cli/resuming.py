"""What a run goes on from: one that was killed, and the judgments that `--retry-errors` keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jlm_cli import devices
from jlm_cli.config import Config
from jlm_cli.errors import InputError, RowError, UsageError
from jlm_cli.files import scratch, write_whole
from jlm_cli.journal import Journal, RowNumbers, begun, first_difference, folder_of
from jlm_cli.kept import Kept, check_made_with, kept_of
from jlm_cli.output import check_output, made_with, summary_path
from jlm_cli.preflight import Run, fingerprint
from jlm_cli.records import Json
from jlm_cli.report import Report
from jlm_cli.survey import AT_ONCE, encoded


def begun_with(config: Config, journal: Journal) -> Json:
    """What says how the run was begun that is gone on with, or whose errors are judged again."""
    facts = journal.facts()
    if not facts and config.retry_errors and config.output is not None:
        return made_with(summary_path(config.output)) or {}
    return facts


def computing_as(now: Run, facts: Json) -> Run:
    """Computing as the run was begun that these facts describe, if there is one: with as many
    threads, and on a CPU, where none are asked for, with as many tokens in a batch."""
    compute = now.compute
    if compute.threads is not None and devices.THREADS in facts:
        compute = replace(compute, threads=facts[devices.THREADS])
    if compute.device == "cpu" and now.config.batch_tokens is None and "batch_tokens" in facts:
        compute = replace(compute, batch_tokens=facts["batch_tokens"])
    return replace(now, compute=compute)


def as_begun(now: Run, journal: Journal) -> Run:
    """As the run was begun that is gone on with, or whose errors are judged again."""
    config, facts = now.config, begun_with(now.config, journal)
    same = computing_as(now, facts)
    anew = config.overwrite and not config.retry_errors
    return now if anew and first_difference(facts, fingerprint(same)) is not None else same


def n_done(now: Run) -> int:
    """How many rows `go_on` would find done. Raises UsageError and InputError as that does."""
    check_output(now.config)
    if (output := now.config.output) is None:
        return 0
    _check_overwrite(now)
    journal = Journal(folder_of(output))
    now = as_begun(now, journal)
    facts, before = fingerprint(now), journal.facts()
    goes_on = first_difference(before, facts) is None
    aside = now.config.retry_errors and journal.has_other_rows(facts)
    if before and not (goes_on or aside or now.config.overwrite):
        raise journal.other_run(before, facts)
    if goes_on and not _may_replace(now, journal):
        journal.check_output(output)
    left = _left(now, journal, journal.done() if goes_on else np.empty(0, np.int64))
    with scratch() as folder:
        saved = journal.saved(facts)
        if aside and saved is None and journal.n_records():
            saved = folder / "saved"
            write_whole(saved, journal.records())
        for one in _kept_of(now, journal, facts, saved):
            left[one.rows] = False
    return int((~left).sum())


def go_on(now: Run, journal: Journal, report: Report) -> NDArray[np.bool_]:
    """Begin the run, or go on with it: which rows are still to be judged. Raises UsageError where
    it is another run, and InputError where it would replace results by errors alone."""
    _check_overwrite(now)
    facts = fingerprint(now)
    if aside := now.config.retry_errors and journal.has_other_rows(facts):
        journal.save()
    kept = _kept_of(now, journal, facts, journal.saved(facts))
    if not aside and (n := _n_given_up(now, journal, facts)) > 0:
        report.note(f"{n:,} rows that another run had judged in {journal.folder} are given up")
    output = now.config.output
    may_replace = _may_replace(now, journal)
    replacing = output if may_replace else None
    done = journal.begin(facts, now.config.overwrite or aside, replacing)
    if output is not None and not may_replace:
        journal.check_output(output)
    left = _left(now, journal, done)
    for one in kept:
        _keep(now, journal, one.of(left))
        left[one.rows] = False
    journal.forget_saved()
    return left


def _may_replace(now: Run, journal: Journal) -> bool:
    """What stands under the output's name now; else only what stood there when the run began."""
    return now.config.overwrite or now.config.retry_errors or not journal.knows_output()


def _left(now: Run, journal: Journal, done: RowNumbers) -> NDArray[np.bool_]:
    """All rows but those that a journal has done."""
    left = np.ones(len(now.rows), bool)
    if len(done) and done.max() >= len(left):
        raise UsageError(f"{journal.folder}: holds rows that there are none of; remove it")
    left[done] = False
    return left


def _n_given_up(now: Run, journal: Journal, facts: Json) -> int:
    """How many rows of another run's `--overwrite` throws away."""
    before = journal.facts() if now.config.overwrite else {}
    return journal.n_records() if before and first_difference(before, facts) else 0


def _kept_of(now: Run, journal: Journal, facts: Json, saved: Path | None) -> list[Kept]:
    """What --retry-errors leaves as it is: of a run that was killed, and of the output."""
    output, found, retries = now.config.output, [], now.config.retry_errors
    goes_on = first_difference(journal.facts(), facts) is None
    if goes_on and journal.n_records() == len(now.rows):
        return []  # a run that failed when all was done, perhaps with the output replaced
    if (retries or goes_on) and saved is not None:
        found.append(saved)
    there = output if retries and output is not None and output.exists() else None
    # a run that was killed as it replaced an output has taken away its summary, and all is saved
    if there is not None and not (found and made_with(summary_path(there)) is None):
        check_made_with(there, facts)
        found.append(there)
    return [kept_of(path, now.rows, give_up=now.config.overwrite) for path in found]


def _keep(now: Run, journal: Journal, kept: Kept) -> None:
    """Take its records over, a few at a time."""
    records = kept.records(now.rows)
    while some := list(islice(records, AT_ONCE)):
        journal.append(some)


def _check_overwrite(now: Run) -> None:
    """Raises InputError where errors alone would replace what was judged before: a wrong --map,
    another file. The first row that can be judged ends the search."""
    output = now.config.output if now.config.overwrite else None
    if output is None or not (output.exists() or begun(folder_of(output))):
        return
    if not len(now.rows) and output.exists() and output.stat().st_size:
        raise InputError(f"{now.rows.source.name}: has no rows, and {output} is left as it is")
    first: RowError | None = None
    for row in range(len(now.rows)):
        ((_, _, found),) = encoded(now.rows, now.encoder, [row])
        if not isinstance(found, RowError):
            return
        first = first or found
    if first is not None:
        raise InputError(f"no row can be judged, and {output} is left as it is: {first}")
