"""`jlm metrics`: predictions → figures → a table, a summary, exports and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from jlm_cli.config import MetricsConfig
from jlm_cli.errors import EXIT_OK, UsageError
from jlm_cli.files import check_folder, check_ordinary, scratch, write_stdout, write_whole
from jlm_cli.measuring.comparing import (
    Aligned,
    align,
    comparison_of,
    disagreements,
    holds_disagreements,
)
from jlm_cli.measuring.grids import Grid, csv_of, latex_of, markdown_of, printed
from jlm_cli.measuring.predictions import Predictions, read_predictions
from jlm_cli.measuring.protocols import PAIRS, VERDICTS_OF
from jlm_cli.measuring.record_protocols import RECORDS
from jlm_cli.measuring.tables import grids_of
from jlm_cli.reading.source import ENDINGS, names_of, spool_stdin
from jlm_cli.records import Json, dump_indented
from jlm_cli.report import Report

_IDS_SHOWN = 5
_TOLD = {
    "only_there": "{n} ids of {side} are not among the predictions of {name}: {ids}",
    "only_in_predictions": "{n} predictions of {name} have no row in {side}: {ids}",
}


def run(config: MetricsConfig) -> int:
    """Measure, print, write; the exit status. Raises JlmError."""
    check(config)
    if "-" not in config.predictions:
        return _run(config)
    with scratch() as folder:
        return _run(replace(config, stdin=spool_stdin(folder / "stdin")))


def check(config: MetricsConfig) -> None:
    """Raises UsageError for options that do not go together, before anything is read."""
    several = len(config.predictions) > 1
    if config.protocol not in PAIRS | RECORDS:
        raise UsageError(f"--protocol {config.protocol}: choose from {', '.join(PAIRS | RECORDS)}")
    if config.protocol in RECORDS and (config.reversed or config.samples or config.disagreements):
        raise UsageError(
            f"--reversed, --input and --disagreements are of no use for {config.protocol}"
        )
    if several and len(set(config.predictions)) < len(config.predictions):
        raise UsageError("the same predictions are named twice")
    if config.reversed is not None and str(config.reversed) in config.predictions:
        raise UsageError(f"{config.reversed}: is named for both orders; --reversed is another file")
    if config.protocol in RECORDS and config.abstain is not None:
        raise UsageError(f"--abstain is of no use for {config.protocol}")
    if several and config.reversed is not None:
        raise UsageError("--reversed belongs to one file of predictions; here are several")
    if not several and config.disagreements is not None:
        raise UsageError("--disagreements compares judges; name two files of predictions")
    if several and "-" in config.predictions:
        raise UsageError("-: standard input cannot be one of several files of predictions")
    inputs = [Path(name) for name in config.predictions if name != "-"]
    inputs += [path for path in (config.gold, config.reversed, config.samples) if path]
    outputs = [config.html, config.csv, config.markdown, config.latex, config.disagreements]
    named = [path for path in outputs if path is not None]
    for output in named:
        if str(output) == "-":
            raise UsageError("-: name a file; standard output has the tables, or --json")
        if named.count(output) > 1:
            raise UsageError(f"{output}: is named for two outputs")
        check_ordinary(output, "name a file; standard output has the tables, or --json")
        check_folder(output)
        if any(output.resolve() == path.resolve() for path in inputs):
            raise UsageError(f"{output}: is an input; name another file")
        if not (output.exists() and output.suffix in ENDINGS):
            continue
        if output != config.disagreements or not holds_disagreements(output):
            raise UsageError(f"{output}: exists, and looks like a file of rows; name another file")


def _run(config: MetricsConfig) -> int:
    names = names_of(config.predictions, (*ENDINGS, ".judge"))
    with ExitStack() as files:
        judges = _read(config, names, files)
        result: Json = {
            "command": "metrics",
            "protocol": config.protocol,
            "judges": _measured(config, names, judges),
        }
        measured = VERDICTS_OF.get(config.protocol, "verdict")
        aligned = align(judges, measured) if len(judges) > 1 else None
        if aligned is not None:
            result["comparison"] = comparison_of(aligned)
        _tell(config, result, Report(config.quiet))
        grids = grids_of(result)
        _write(config, result, grids, judges, aligned)
    said = _packed(config, result) if config.print_json else printed(grids).encode()
    write_stdout(iter([said]))
    return EXIT_OK


def _read(config: MetricsConfig, names: Sequence[str], files: ExitStack) -> dict[str, Predictions]:
    """The predictions of each judge, where the protocol is about pairs."""
    if config.protocol not in PAIRS:
        return {}
    sides = config.gold, config.reversed, config.samples, config.stdin
    return {
        name: files.enter_context(read_predictions(path, *sides))
        for name, path in zip(names, config.predictions, strict=True)
    }


def _measured(
    config: MetricsConfig, names: Sequence[str], judges: dict[str, Predictions]
) -> dict[str, Json]:
    if judges:
        return {name: PAIRS[config.protocol](found, config) for name, found in judges.items()}
    paths = zip(names, config.predictions, strict=True)
    return {name: RECORDS[config.protocol](path, config) for name, path in paths}


def _packed(config: MetricsConfig, result: Json) -> bytes:
    """One judge's summary is flat, as `jlm judge` writes it."""
    if len(result["judges"]) == 1:
        (summary,) = result["judges"].values()
        head = {"command": "metrics", "protocol": config.protocol}
        result = {**head, "predictions": config.predictions[0], **summary}
    return dump_indented(result)


def _tell(config: MetricsConfig, result: Json, report: Report) -> None:
    """The ids that are missing on one side; the JSON summary holds all of them."""
    has_sides = config.samples is not None or config.gold is not None
    way_out = ", nor does what was given" if has_sides else "; --input or --gold can bring it"
    for name, summary in result["judges"].items():
        for side, missing in summary.get("joined", {}).items():
            for kind, text in _TOLD.items():
                if ids := missing[kind]:
                    report.note(text.format(n=len(ids), side=side, name=name, ids=_some(ids)))
        if "gold" in summary and not any(map(summary["gold"].get, ("n", "without_verdict"))):
            given = "gold" in summary.get("joined", {})
            what = "that of --gold has none for its rows" if given else "give --gold"
            report.note(f"{name}: no gold, so no agreement; {what}")
        if n := summary.get("failures", {}).get("n_without_gold"):
            report.note(f"{name}: {n} failed rows hold no gold{way_out}")
        for remark in summary.get("remarks", ()):
            report.note(f"{name}: {remark}")
        if ids := summary.get("gold", {}).get("without_verdict"):
            report.note(f"{len(ids)} rows have gold without a verdict: {_some(ids)}")
    comparison = result.get("comparison", {})
    for name, n in comparison.get("left_out", {}).items():
        if n:
            report.note(f"{n} rows of {name} are not among those of all judges, and not compared")
    for name, found in comparison.get("against", {}).items():
        if n := found.get("n_other_gold"):
            first = comparison["first"]
            told = f"{name}: other gold than that of {first} in {n} of the rows"
            report.note(f"{told}; the comparison goes by that of {first}, or by --gold")


def _some(ids: Sequence[Any]) -> str:
    return ", ".join(map(repr, ids[:_IDS_SHOWN])) + (", …" if len(ids) > _IDS_SHOWN else "")


def _write(
    config: MetricsConfig,
    result: Json,
    grids: Sequence[Grid],
    judges: dict[str, Predictions],
    aligned: Aligned | None,
) -> None:
    exports: list[tuple[Path | None, Callable[[Sequence[Grid]], str]]] = [
        (config.csv, csv_of),
        (config.markdown, markdown_of),
        (config.latex, latex_of),
    ]
    for path, export in exports:
        if path is not None:
            write_whole(path, iter([export(grids).encode()]))
    if config.disagreements is not None and aligned is not None:
        write_whole(config.disagreements, disagreements(aligned))
    if config.html is not None:
        from jlm_cli.measuring.page import page_of

        first = next(iter(judges.values()), None)
        write_whole(config.html, iter([page_of(result, grids, first, aligned).encode()]))
