"""The command line: options become a Config, errors become one line and an exit code."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from jlm_cli import __version__, cli_train, signals
from jlm_cli.cli_train import pair
from jlm_cli.config import Config, MetricsConfig
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

_EXAMPLES = {
    "judge": """
  jlm judge pairs.jsonl                        results in pairs.judge.jsonl\n
  jlm judge pairs.jsonl --swap --reason        both orders, with reasons\n
  cat pairs.jsonl | jlm judge - -o - | jq .verdict\n
  jlm judge q.jsonl --reference refs.jsonl --gold gpt4.jsonl\n
  jlm judge pairs.jsonl --aspect factuality --aspect "tone: polite and plain"\n
  jlm judge my.jsonl --map question=prompt --map answer_1=a --map answer_2=b\n
  jlm judge -Q "What is 2 + 2?" -A 4 -A 5
""",
    "grade": """
  jlm grade answers.jsonl --pass-mark 7        each against its reference\n
  jlm grade answers.jsonl --no-reference       each by itself\n
  jlm grade mm-vet.json predictions.json --template vqa\n
  jlm grade -Q "What is 2 + 2?" -A 5 -R "It is 4."
""",
    "rank": """
  jlm rank answers.jsonl                       2 to N answers in one prompt\n
  jlm rank answers.jsonl --permute 4           rotated, so that places do not count\n
  jlm rank a.json b.json c.json                AlpacaEval outputs of three models\n
  jlm rank answers.jsonl --compare             lists against all pairs (Table 10)
""",
}

_CHAT_EXAMPLES = """[bold]Examples[/bold]

  jlm chat pairs.judge.jsonl --id sum          talk about one judgment\n
  jlm chat small.jsonl --line 3 --input pairs.jsonl      records of --compact\n
  jlm chat                                     a question and two answers typed in\n
  printf 'Why not 10?\\n' | jlm chat pairs.judge.jsonl --id sum
"""

ModelName = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        help="tiny, tiny-base, a folder, a .gguf file or a hub id with @REVISION.  "
        "\\[default: $JLM_MODEL, else JudgeLM-7B on CUDA, else tiny]",
    ),
]
TemplateName = Annotated[
    str | None, typer.Option(help="Prompt template: a name from prompts/ or a .toml file.")
]
Device = Annotated[Literal["cpu", "cuda", "mps"] | None, typer.Option()]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"] | None, typer.Option()]
Bits = Annotated[
    Literal["8bit", "4bit"] | None,
    typer.Option(help="Weights in fewer bits, by bitsandbytes (extra: quantize)."),
]


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


def _shared(
    command: str,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT…", help="JSONL or JSON list; - is standard input."),
    ] = None,
    question: Annotated[
        str | None, typer.Option("-Q", "--question", help="One question instead of a file.")
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option("-A", "--answer", help="An answer to it; several times.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="Results; - is standard output.  \\[default: STEM.COMMAND.jsonl here]",
        ),
    ] = None,
    model: ModelName = None,
    reason: Annotated[
        bool, typer.Option("--reason", help="Write a reason behind the scores.")
    ] = False,
    explain_first: Annotated[
        bool, typer.Option("--explain-first", help="Write the reason before the scores.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit of a reason, in tokens.")] = 512,
    reference: Annotated[Path | None, typer.Option(help="References, joined by id.")] = None,
    reference_text: Annotated[
        str | None, typer.Option("-R", "--reference-text", help="One reference for all rows.")
    ] = None,
    no_reference: Annotated[
        bool, typer.Option("--no-reference", help="Leave out references that the input has.")
    ] = False,
    gold: Annotated[
        Path | None, typer.Option(help="Gold verdicts or scores, joined by id.")
    ] = None,
    template: TemplateName = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Bits = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on the CPU, each with its own model.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs to use.  \\[default: all]")] = None,
    gpus_per_model: Annotated[
        int, typer.Option(min=1, help="GPUs that one model is spread over.")
    ] = 1,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Prompt tokens judged at once.  \\[default: by memory]"),
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
) -> Config:
    """What judge, grade and rank have in common."""
    from jlm_cli import devices

    if (question is None) != (answer is None):
        raise UsageError("-Q and -A go together: -Q 'Why?' -A 'Because.' -A 'No idea.'")
    if (question is None) != bool(inputs):
        raise UsageError("give either input files or one question with -Q and -A")
    target = _output(inputs or ["-"], output, command)
    if target is None and print_json and question is None:
        raise UsageError("--json and -o - both want standard output; take one")
    if sum((reference is not None, reference_text is not None, no_reference)) > 1:
        raise UsageError("--reference, --reference-text and --no-reference exclude each other")
    if reason and explain_first:
        raise UsageError("--reason and --explain-first exclude each other: behind or before")
    if explain_first and template is not None:
        raise UsageError("--explain-first and --template exclude each other")
    if workers is not None and (gpus is not None or device in ("cuda", "mps")):
        raise UsageError("--workers is for processes on the CPU; take --gpus, or --device cpu")
    if gpus is not None and device in ("cpu", "mps"):
        raise UsageError(f"--gpus and --device {device} exclude each other")
    return Config(
        inputs=tuple(inputs or ()),
        inline=None if question is None else (question, *(answer or ())),
        output=target,
        model=model or devices.default_name(),
        command=command,
        reason=reason,
        explain_first=explain_first,
        max_new_tokens=max_new_tokens,
        reference=reference,
        reference_text=reference_text,
        use_reference=not no_reference,
        gold=gold,
        template=template,
        device=device,
        dtype=dtype,
        quantize=quantize,
        workers=workers,
        gpus=gpus,
        gpus_per_model=gpus_per_model,
        batch_tokens=batch_tokens,
        max_length=max_length,
        on_overflow=on_overflow,
        on_injection=on_injection,
        schema=schema,
        field_map=tuple(pair(text) for text in field_map or ()),
        limit=limit,
        overwrite=overwrite,
        retry_errors=retry_errors,
        plan=plan,
        strict=strict,
        compact=compact,
        quiet=quiet,
        print_json=print_json,
    )


def _judging(function: Callable[..., Config]) -> Callable[..., None]:
    """A command of the options that all share, and of those that the function adds to them."""
    name = function.__name__
    shared = list(inspect.signature(_shared, eval_str=True).parameters.values())[1:]
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

    def command(**given: Any) -> None:
        from jlm_cli import runner

        common = _shared(name, **{option.name: given.pop(option.name) for option in shared})
        raise typer.Exit(runner.start(function(common, **given)))

    command.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    epilog = "[bold]Examples[/bold]\n" + _EXAMPLES[name]
    return app.command(name, epilog=epilog)(command)


Aspects = Annotated[
    list[str] | None,
    typer.Option(
        "--aspect",
        metavar="NAME",
        help="Also judge one quality: factuality, fluency, novelty, helpfulness, or 'NAME: "
        "what it means'; several times.",
    ),
]
Together = Annotated[
    bool, typer.Option("--aspects-together", help="All aspects in one prompt, one score for all.")
]


@_judging
def judge(
    config: Config,
    swap: Annotated[bool, typer.Option("--swap", help="Judge both orders of the answers.")] = False,
    aspect: Aspects = None,
    aspects_together: Together = False,
) -> Config:
    """Compare two answers to each question: scores, verdict, probabilities."""
    aspects = tuple(aspect or ())
    return replace(config, swap=swap, aspects=aspects, aspects_together=aspects_together)


@_judging
def grade(
    config: Config,
    pass_mark: Annotated[
        float | None, typer.Option(min=1, max=10, help="The least score that passes.")
    ] = None,
    aspect: Aspects = None,
    aspects_together: Together = False,
) -> Config:
    """Grade single answers from 1 to 10, against a reference that would get 10."""
    aspects = tuple(aspect or ())
    return replace(config, pass_mark=pass_mark, aspects=aspects, aspects_together=aspects_together)


@_judging
def rank(
    config: Config,
    method: Annotated[
        Literal["auto", "listwise", "pairwise"],
        typer.Option(
            help="All answers in one prompt, all pairs, or pairs where a list is too long."
        ),
    ] = "auto",
    permute: Annotated[
        int,
        typer.Option(min=0, metavar="K", help="Judge K rotations of the list and average them."),
    ] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Judge pairs as well, and say how far they agree.")
    ] = False,
) -> Config:
    """Put two or more answers to each question in order."""
    return replace(config, method=method, permute=permute, compare=compare)


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
        str, typer.Option(help="judgelm, pandalm, rewardbench, rank, mmvet, grade or aspects.")
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
    from jlm_cli.case import Choice
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
    raise typer.Exit(talk(config, None if judged is None else Choice(judged, row_id, line)))


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
    device: Annotated[Literal["cpu", "cuda", "mps"] | None, typer.Option()] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, typer.Option()] = None,
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
