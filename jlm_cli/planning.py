"""`--plan`: what a run would do, without loading a weight or writing a file."""

from __future__ import annotations

from dataclasses import replace

from jlm_cli.config import Config
from jlm_cli.errors import EXIT_ERROR_RECORDS, EXIT_OK, JlmError
from jlm_cli.files import scratch, write_stdout
from jlm_cli.preflight import facts_of, open_run
from jlm_cli.reading.source import spool_stdin
from jlm_cli.records import dump_indented
from jlm_cli.report import Report
from jlm_cli.resuming import n_done
from jlm_cli.sharding import n_workers
from jlm_cli.survey import take_survey


def tell_plan(config: Config) -> int:
    """The exit status that the run would have. Raises JlmError."""
    report = Report(config.quiet)
    if "-" in config.inputs:
        with scratch() as folder:
            stdin = spool_stdin(folder / "stdin")
            return _tell(replace(config, stdin=stdin), report)
    return _tell(config, report)


def _tell(config: Config, report: Report) -> int:
    now = open_run(config, report)
    survey = take_survey(now.rows, now.encoder, lambda errors: None)
    status = EXIT_ERROR_RECORDS if survey.errors.total() else EXIT_OK
    try:
        n_workers(config)
        done = n_done(now)
    except JlmError as refusal:  # of the run; a plan writes nothing
        done, status = 0, refusal.exit_code
        report.note(f"this run would be refused: {refusal}")
    facts = {**facts_of(now, survey), "rows_done": done}
    if now.config.print_json:
        write_stdout(iter([dump_indented({**facts, **now.compute.sizes()})]))
    else:
        report.plan(facts, now.compute)
    return status
