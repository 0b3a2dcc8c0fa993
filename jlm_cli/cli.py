"""The command line: options become a Config, errors become one line and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from jlm_cli import __version__, cli_judge, cli_train, signals
from jlm_cli.cli_options import PROTOCOLS, Bits, Device, Dtype, ModelName, TemplateName
from jlm_cli.config import TIE_WITHIN, Config, MetricsConfig
from jlm_cli.errors import (
    EXIT_OK,
    Ended,
    JlmError,
    ReaderLeft,
    SystemFailure,
    UsageError,
    printable,
)

app = typer.Typer(
    help="Judge language-model answers with a local model: scores first, reasons if wanted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_CHAT_EXAMPLES = """[bold]Examples[/bold]

  jlm chat pairs.judge.jsonl --id sum          talk about one judgment\n
  jlm chat small.jsonl --line 3 --input pairs.jsonl      records of --compact\n
  jlm chat                                     a question and two answers typed in\n
  printf 'Why not 10?\\n' | jlm chat pairs.judge.jsonl --id sum
"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jlm {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command(epilog=cli_judge.EXAMPLES["judge"])(cli_judge.judge)
app.command(epilog=cli_judge.EXAMPLES["grade"])(cli_judge.grade)
app.command(epilog=cli_judge.EXAMPLES["rank"])(cli_judge.rank)


_METRICS_EXAMPLES = """[bold]Examples[/bold]

  jlm metrics pairs.judge.jsonl                        gold from the records\n
  jlm metrics pred.jsonl --reversed pred2.jsonl --gold gpt4.jsonl\n
  jlm metrics a.jsonl b.jsonl --gold gold.jsonl --disagreements where.jsonl\n
  jlm metrics pairs.judge.jsonl --html report.html --latex table.tex
"""


@app.command(epilog=_METRICS_EXAMPLES)
def metrics(
    predictions: Annotated[
        list[str],
        typer.Argument(
            metavar="PRED...",
            help="Records of jlm, official predictions, or id and "
            "verdict a line; several files are several judges.",
        ),
    ],
    gold: Annotated[Path | None, typer.Option(help="Gold, joined by id.")] = None,
    reversed_: Annotated[
        Path | None,
        typer.Option("--reversed", help="Predictions for the swapped order, joined by id."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--input", help="What was judged, where the predictions leave it out."),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(PROTOCOLS)}.", autocompletion=lambda: [*PROTOCOLS]),
    ] = "judgelm",
    abstain: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Also: verdicts below this p become none, or ties."),
    ] = None,
    tie_within: Annotated[
        int,
        typer.Option(min=0, help="Characters within which the longest-answer baseline says tie."),
    ] = TIE_WITHIN,
    disagreements: Annotated[
        Path | None, typer.Option(help="Write the rows on which judges differ, most first.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report, one file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the tables, one figure a line.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Write the tables.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes.")] = False,
    print_json: Annotated[
        bool, typer.Option("--json", help="The summary instead of tables.")
    ] = False,
) -> None:
    """Measure predictions: agreement with gold, position bias, calibration, judges side by side."""
    from jlm_cli.measuring import evaluation

    config = MetricsConfig(
        predictions=tuple(predictions),
        protocol=protocol,
        gold=gold,
        reversed=reversed_,
        samples=samples,
        abstain=abstain,
        tie_within=tie_within,
        disagreements=disagreements,
        html=html,
        csv=csv,
        markdown=markdown,
        latex=latex,
        print_json=print_json,
        quiet=quiet,
    )
    raise typer.Exit(evaluation.run(config))


@app.command(epilog=_CHAT_EXAMPLES)
def chat(
    judged: Annotated[
        str | None, typer.Argument(metavar="[JUDGED.jsonl]", help="Results of jlm judge or grade.")
    ] = None,
    row_id: Annotated[str | None, typer.Option("--id", help="The record's id.")] = None,
    line: Annotated[
        int | None, typer.Option(min=1, help="The record's line, as in its field line.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="What was judged, for records without their sample."),
    ] = None,
    model: ModelName = None,
    template: TemplateName = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit of a reply, in tokens.")] = 512,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Longest conversation, in tokens.  \\[default: the model's]"),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Bits = None,
) -> None:
    """Talk with the judge about a judgment, or about a question typed in."""
    from jlm_cli import devices
    from jlm_cli.case import RecordChoice
    from jlm_cli.chat import talk

    if judged is None and (row_id is not None or line is not None or inputs):
        raise UsageError("--id, --line and --input belong to a judged file; name it")
    if row_id is not None and line is not None:
        raise UsageError("--id and --line exclude each other")
    config = Config(
        inputs=tuple(inputs or ()),
        output=None,
        model=model or devices.default_name(),
        max_new_tokens=max_new_tokens,
        template=template,
        device=device,
        dtype=dtype,
        quantize=quantize,
        max_length=max_length,
    )
    raise typer.Exit(talk(config, None if judged is None else RecordChoice(judged, row_id, line)))


app.command(epilog=cli_train.EXAMPLES)(cli_train.train)
app.command(epilog=cli_train.DATA_EXAMPLES)(cli_train.data)
app.command()(cli_train.adapter)


@app.command(epilog="[bold]Example[/bold]\n  jlm probe -m tiny --max-attack-success 0.2")
def probe(
    model: Annotated[str | None, typer.Option("-m", "--model", help="As for judge.")] = None,
    template: Annotated[str | None, typer.Option(help="As for judge.")] = None,
    on_injection: Annotated[
        Literal["flag", "neutralize", "error"],
        typer.Option(help="As for judge: how far does it help?"),
    ] = "flag",
    max_attack_success: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 3 where more of all attacks succeed."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on the CPU.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes, no table.")] = False,
    print_json: Annotated[bool, typer.Option("--json", help="Rates to standard output.")] = False,
) -> None:
    """How often known tricks make a judge prefer the worse answer."""
    from jlm_cli import devices
    from jlm_cli import probe as probing

    config = Config(
        inputs=(),
        output=None,
        model=model or devices.default_name(),
        swap=True,
        template=template,
        on_injection=on_injection,
        device=device,
        dtype=dtype,
        workers=workers,
        quiet=quiet,
        print_json=print_json,
    )
    raise typer.Exit(probing.run(config, max_attack_success))


def main() -> NoReturn:
    """Run a command; every JlmError becomes one line here, and nowhere else."""
    signals.unwind()
    code = _exit_code_of(app)
    signals.leave_at_once()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # the reader has left; Python would complain once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    gc.freeze()  # all of it goes with the process; to look it through before takes a second
    sys.exit(code)


def _exit_code_of(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:  # of Typer
        return end.code if isinstance(end.code, int) else EXIT_OK
    except ReaderLeft:
        return EXIT_OK
    except KeyboardInterrupt:
        return 130
    except Ended as ended:
        return ended.exit_code
    except JlmError as error:
        return _told(error)
    except OSError as error:
        return _told(SystemFailure.of(error))
    return EXIT_OK


def _told(error: JlmError) -> int:
    with suppress(OSError):
        print(f"jlm: {printable(error)}", file=sys.stderr)
    return error.exit_code
