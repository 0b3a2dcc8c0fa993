"""The command line: options become a Config, errors become one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer

from jlm_cli import __version__
from jlm_cli.config import Config, MetricsConfig
from jlm_cli.errors import Ended, JlmError, UsageError

app = typer.Typer(
    help="Judge language-model answers with a local model: scores first, reasons if wanted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXAMPLES = """[bold]Examples[/bold]

  jlm judge pairs.jsonl                        results in pairs.judge.jsonl\n
  jlm judge pairs.jsonl --swap --reason        both orders, with reasons\n
  cat pairs.jsonl | jlm judge - -o - | jq .verdict\n
  jlm judge q.jsonl --reference refs.jsonl --gold gpt4.jsonl\n
  jlm judge my.jsonl --map question=prompt --map answer_1=a --map answer_2=b
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


@app.command(epilog=_EXAMPLES)
def judge(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT…", help="JSONL or JSON list; - is standard input.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="Results; - is standard output.  [default: STEM.judge.jsonl here]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            help="tiny, tiny-base, a folder, a .gguf file or a hub id with @REVISION.  "
            "[default: $JLM_MODEL, else JudgeLM-7B on CUDA, else tiny]",
        ),
    ] = None,
    swap: Annotated[bool, typer.Option("--swap", help="Judge both orders of the answers.")] = False,
    reason: Annotated[
        bool, typer.Option("--reason", help="Write a reason behind the scores.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit of a reason, in tokens.")] = 512,
    reference: Annotated[Path | None, typer.Option(help="References, joined by id.")] = None,
    no_reference: Annotated[
        bool, typer.Option("--no-reference", help="Leave out references that the input has.")
    ] = False,
    gold: Annotated[
        Path | None, typer.Option(help="Gold verdicts or scores, joined by id.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt template: a name from prompts/ or a .toml file.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda", "mps"] | None, typer.Option()] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, typer.Option()] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on the CPU, each with its own model.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs to use.  [default: all]")] = None,
    gpus_per_model: Annotated[
        int, typer.Option(min=1, help="GPUs that one model is spread over.")
    ] = 1,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Prompt tokens judged at once.  [default: by memory]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt with its score line, in tokens.")
    ] = None,
    on_overflow: Annotated[
        Literal["truncate", "error"],
        typer.Option(help="What to do with a longer one: cut the longer answer, or an error."),
    ] = "truncate",
    schema: Annotated[str, typer.Option(help="Input format, told by its fields.")] = "auto",
    field_map: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="NATIVE=FIELD", help="Name the fields of another format."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first N rows.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Judge the output's error records again.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be judged; load no weights.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first bad line.")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Leave samples out of results.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes, bars or tables.")] = False,
    print_json: Annotated[bool, typer.Option("--json", help="Summary to standard output.")] = False,
) -> None:
    """Compare two answers to each question: scores, verdict, probabilities."""
    from jlm_cli import models, runner

    target = _output(inputs, output, "judge")
    if target is None and print_json:
        raise UsageError("--json and -o - both want standard output; take one")
    if reference is not None and no_reference:
        raise UsageError("--reference and --no-reference exclude each other")
    if workers is not None and (gpus is not None or device in ("cuda", "mps")):
        raise UsageError("--workers is for processes on the CPU; take --gpus, or --device cpu")
    if gpus is not None and device in ("cpu", "mps"):
        raise UsageError(f"--gpus and --device {device} exclude each other")
    config = Config(
        inputs=tuple(inputs),
        output=target,
        model=model or models.default_name(),
        swap=swap,
        reason=reason,
        max_new_tokens=max_new_tokens,
        reference=reference,
        use_reference=not no_reference,
        gold=gold,
        template=template,
        device=device,
        dtype=dtype,
        workers=workers,
        gpus=gpus,
        gpus_per_model=gpus_per_model,
        batch_tokens=batch_tokens,
        max_length=max_length,
        on_overflow=on_overflow,
        schema=schema,
        field_map=tuple(_pair(text) for text in field_map or ()),
        limit=limit,
        overwrite=overwrite,
        retry_errors=retry_errors,
        strict=strict,
        compact=compact,
        quiet=quiet,
        print_json=print_json,
    )
    raise typer.Exit(runner.preflight(config) if plan else runner.run(config))


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
            metavar="PRED…",
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
        str, typer.Option(help="judgelm, pandalm, rank, mmvet, aspects or rewardbench.")
    ] = "judgelm",
    abstain: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Also: verdicts below this p become none, or ties."),
    ] = None,
    tie_within: Annotated[
        int,
        typer.Option(min=0, help="Characters within which the longest-answer baseline says tie."),
    ] = 3,
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
    from jlm_cli import evaluation

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


def _output(inputs: list[str], output: str | None, command: str) -> Path | None:
    """Where results go: None is standard output, the default where the input is standard input."""
    if output == "-" or (output is None and inputs[0] == "-"):
        return None
    if output is not None:
        return Path(output)
    stem = Path(inputs[0]).name
    for suffix in (".gz", ".jsonl", ".json"):
        stem = stem.removesuffix(suffix)
    return Path(f"{stem}.{command}.jsonl")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"--map {text}: write it as NATIVE=FIELD, like --map question=prompt")
    return name, value


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Ended(number)


def main() -> NoReturn:
    """Run a command; every JlmError becomes one line here, and nowhere else."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    try:
        app()
    except JlmError as error:
        print(f"jlm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader has seen enough: `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Ended as ended:
        sys.exit(ended.exit_code)
    sys.exit(0)
