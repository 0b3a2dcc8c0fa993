"""The command line: options become a Config, errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from jlm_cli import __version__, signals
from jlm_cli.config import Config
from jlm_cli.errors import EXIT_OK, Ended, JlmError, SystemFailure, UsageError, printable

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
    on_injection: Annotated[
        Literal["flag", "neutralize", "error"],
        typer.Option(help="What to do with answers that forge the prompt's structure."),
    ] = "flag",
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
        on_injection=on_injection,
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


def _output(inputs: list[str], output: str | None, command: str) -> Path | None:
    """Where results go: None is standard output, the default where the input is standard input."""
    if output == "-" or (output is None and inputs[0] == "-"):
        return None
    if output is not None:
        return Path(output)
    stem = Path(inputs[0]).name
    for suffix in (".gz", ".zst", ".jsonl", ".json"):
        stem = stem.removesuffix(suffix)
    return Path(f"{stem}.{command}.jsonl")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"--map {text}: write it as NATIVE=FIELD, like --map question=prompt")
    return name, value


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
    sys.exit(code)


def _exit_code_of(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:  # of Typer
        return end.code if isinstance(end.code, int) else EXIT_OK
    except BrokenPipeError:  # the reader has seen enough: `| head -1`
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
