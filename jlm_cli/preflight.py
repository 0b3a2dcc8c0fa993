"""Before a weight is loaded: what a run works with, and what `--plan` tells of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jlm_cli import devices, models, vocabularies
from jlm_cli.batching import Plan, make_plan
from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Lines
from jlm_cli.errors import EXIT_ERROR_RECORDS, EXIT_OK, UsageError
from jlm_cli.files import scratch, write_stdout
from jlm_cli.journal import Journal, begun, first_difference, folder_of
from jlm_cli.kept import check_made_with, kept_of
from jlm_cli.modes import Mode, identity, mode_of, writes_first
from jlm_cli.output import check_output, made_with, summary_path
from jlm_cli.reading.rows import Rows, open_rows
from jlm_cli.reading.source import spool_stdin
from jlm_cli.records import Json, dump_indented
from jlm_cli.report import Report
from jlm_cli.survey import Survey, take_survey


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


def open_run(config: Config, report: Report) -> Run:
    """Input, schema, tokenizer and templates of a run. Raises JlmError."""
    mode_of(config)  # what is asked for wrongly is told before a model is fetched
    rows = open_rows(config)
    files = models.find(config.model, report.note)
    mode = mode_of(config, files.template)
    compute = devices.choose_compute(files, config, _writes(config, mode))
    report.note(f"model {files.name} on {compute.device} in {compute.dtype}")
    lines = Lines(vocabularies.load_vocabulary(files))
    return Run(config, rows, files, mode, lines, Encoder(lines, mode, config), compute)


def _writes(config: Config, mode: Mode) -> bool:
    return config.reason or writes_first(mode.templates)


def fingerprint(now: Run) -> Json:
    """All that can change a byte of the output, by the names that a refusal gives."""
    return {
        **now.config.settings(),
        "input": now.rows.source.sha256(),
        "reference": None if now.rows.references is None else now.rows.references.sha256,
        "gold": None if now.rows.gold is None else now.rows.gold.sha256,
        "model": now.files.identity(),
        "template": identity(now.mode.templates),
        **now.compute.settings(),
        **devices.versions(),
    }


def begun_with(config: Config, journal: Journal) -> Json:
    """What says how the run was begun that is gone on with, or whose errors are judged again."""
    facts = journal.facts()
    if not facts and config.retry_errors and config.output is not None:
        return made_with(summary_path(config.output)) or {}
    return facts


def as_begun(now: Run, facts: Json) -> Run:
    """Computing as the run was begun that these facts describe, if there is one: with as many
    threads, and on a CPU, where none are asked for, with as many tokens in a batch."""
    compute = now.compute
    if compute.threads is not None and devices.THREADS in facts:
        compute = replace(compute, threads=facts[devices.THREADS])
    if compute.device == "cpu" and now.config.batch_tokens is None and "batch_tokens" in facts:
        compute = replace(compute, batch_tokens=facts["batch_tokens"])
    return replace(now, compute=compute)


def plan_of(now: Run, survey: Survey) -> Plan:
    config, budget = now.config, now.compute.batch_tokens
    each = min(config.max_new_tokens, now.lines.vocabulary.context or config.max_new_tokens)
    written = each * (2 if config.swap else 1) if _writes(config, now.mode) else 0
    return make_plan(survey.rows, survey.tokens, survey.groups, budget, written)


def facts_of(now: Run, survey: Survey) -> Json:
    """What a survey found, for people and for programs."""
    tokens = np.asarray(survey.tokens, np.int64)
    measured = survey.n_with_gold > 0 or now.config.gold is not None
    n_without_gold = len(survey.rows) - survey.n_with_gold - survey.n_unreadable_gold
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
        "rows_without_gold": n_without_gold if measured else 0,
        "rows_with_unreadable_gold": survey.n_unreadable_gold,
        "first_unreadable_gold": survey.first_unreadable,
        "rows_without_id": survey.n_without_id,
        "rows_with_a_double_id": survey.n_double_ids,
        "rows_whose_reference_is_not_shown": survey.n_unshown_references,
        "batches": len(plan_of(now, survey)),
    }


def preflight(config: Config) -> int:
    """`--plan`: what a run would do, without loading a weight or writing a file; the exit status
    that it would have."""
    report = Report(config.quiet)
    if "-" in config.inputs:
        with scratch() as folder:
            stdin = spool_stdin(folder / "stdin")
            return _preflight(replace(config, stdin=stdin), report)
    return _preflight(config, report)


def _preflight(config: Config, report: Report) -> int:
    now = open_run(config, report)
    survey = take_survey(now.rows, now.encoder, lambda errors: None)
    status = EXIT_ERROR_RECORDS if survey.errors.total() else EXIT_OK
    try:
        n_done = _n_done(now)
    except UsageError as refusal:  # of the run; a plan writes nothing
        n_done, status = 0, refusal.exit_code
        report.note(f"this run would be refused: {refusal}")
    facts = {**facts_of(now, survey), "rows_done": n_done}
    if now.config.print_json:
        write_stdout(iter([dump_indented({**facts, **now.compute.sizes()})]))
    else:
        report.plan(facts, now.compute)
    return status


def _n_done(now: Run) -> int:
    """Rows that a run would go on from: of a killed one, or of the output that --retry-errors keeps
    (of a killed one whose input has changed since, the run tells). Raises UsageError where the run
    would be refused."""
    check_output(now.config)
    output, retries, anew = now.config.output, now.config.retry_errors, now.config.overwrite
    if output is None:
        return 0
    journal = Journal(folder_of(output))
    facts = begun_with(now.config, journal)
    ours = fingerprint(as_begun(now, facts))
    if begun(journal.folder):
        if first_difference(facts, ours) is None:
            return 0 if anew and not retries else journal.n_records()
        if not (retries or anew):
            raise journal.other_run(facts, ours)
    elif retries:
        check_made_with(output, ours)
        return int(kept_of(output, now.rows, give_up=anew).rows.sum())
    return 0
