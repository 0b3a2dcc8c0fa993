"""The options of `jlm judge`, `grade` and `rank`: they become a Config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jlm_cli.cli_options import (
    Bits,
    Device,
    Dtype,
    FieldMap,
    ModelName,
    Schema,
    TemplateName,
    fields_named,
)
from jlm_cli.config import Config
from jlm_cli.errors import UsageError

EXAMPLES = {
    "judge": """[bold]Examples[/bold]

  jlm judge pairs.jsonl                        results in pairs.judge.jsonl\n
  jlm judge pairs.jsonl --swap --reason        both orders, with reasons\n
  cat pairs.jsonl | jlm judge - -o - | jq .verdict\n
  jlm judge q.jsonl --reference refs.jsonl --gold gpt4.jsonl\n
  jlm judge pairs.jsonl --aspect factuality --aspect "tone: polite and plain"\n
  jlm judge my.jsonl --map question=prompt --map answer_1=a --map answer_2=b\n
  jlm judge -Q "What is 2 + 2?" -A 4 -A 5
""",
    "grade": """[bold]Examples[/bold]

  jlm grade answers.jsonl --pass-mark 7        each against its reference\n
  jlm grade answers.jsonl --no-reference       each by itself\n
  jlm grade mm-vet.json predictions.json --template vqa\n
  jlm grade -Q "What is 2 + 2?" -A 5 -R "It is 4."
""",
    "rank": """[bold]Examples[/bold]

  jlm rank answers.jsonl                       2 to N answers in one prompt\n
  jlm rank answers.jsonl --permute 4           rotated, so that places do not count\n
  jlm rank a.json b.json c.json                AlpacaEval outputs of three models\n
  jlm rank answers.jsonl --compare             lists against all pairs (Table 10)
""",
}


def _shared(
    command: str,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="JSONL or JSON list; - is standard input."),
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
    schema: Schema = "auto",
    field_map: FieldMap = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first N rows.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Judge error records again, and new rows.")
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
        raise UsageError("give either input files (- is standard input) or a question: -Q and -A")
    if question is not None and not question.strip():
        raise UsageError("-Q is empty; there is nothing to judge")
    if question is not None and (retry_errors or output not in (None, "-")):
        raise UsageError("-Q prints what it judged; --output and --retry-errors are for files")
    of_files = {
        "--reference": reference, "--gold": gold, "--map": field_map, "--limit": limit,
    }  # fmt: skip
    if question is not None and (named := [name for name, given in of_files.items() if given]):
        raise UsageError(f"-Q is one question; {named[0]} is for files")
    for text in (question, *(answer or ()), reference_text, *(field_map or ())):
        _check_unicode(text)
    target = _output(inputs or ["-"], output, command)
    if target is None and print_json and question is None:
        raise UsageError("--json and -o - both want standard output; take one")
    if sum((reference is not None, reference_text is not None, no_reference)) > 1:
        raise UsageError("--reference, --reference-text and --no-reference exclude each other")
    if reference_text is not None and not reference_text.strip():
        raise UsageError("--reference-text is empty; leave it out, or use --no-reference")
    if reason and explain_first:
        raise UsageError("--reason and --explain-first exclude each other: behind or before")
    if explain_first and template is not None:
        raise UsageError("--explain-first and --template exclude each other")
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
        field_map=fields_named(field_map),
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
    command.__name__, command.__doc__ = name, function.__doc__
    return command


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


def _check_unicode(text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise UsageError(f"an option is not UTF-8 text: {text!a}") from None


def _with_aspects(config: Config, aspects: list[str] | None, together: bool) -> Config:
    for text in aspects or ():
        _check_unicode(text)
    if together and not aspects:
        raise UsageError("--aspects-together needs aspects: --aspect fluency --aspect novelty")
    return replace(config, aspects=tuple(aspects or ()), aspects_together=together)


@_judging
def judge(
    config: Config,
    swap: Annotated[bool, typer.Option("--swap", help="Judge both orders of the answers.")] = False,
    aspect: Aspects = None,
    aspects_together: Together = False,
) -> Config:
    """Compare two answers to each question: scores, verdict, probabilities."""
    return replace(_with_aspects(config, aspect, aspects_together), swap=swap)


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
    return replace(_with_aspects(config, aspect, aspects_together), pass_mark=pass_mark)


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
    if permute and method == "pairwise":
        raise UsageError("--permute turns lists; --method pairwise has none")
    return replace(config, method=method, permute=permute, compare=compare)


def _output(inputs: list[str], output: str | None, command: str) -> Path | None:
    """Where results go: None is standard output, the default where the input is a pipe without a
    name."""
    if output is not None:
        return None if output == "-" else Path(output)
    if inputs[0] == "-" or inputs[0].startswith(("/dev/", "/proc/")):
        return None
    from jlm_cli.reading.source import stem_of  # not for --help

    return Path(f"{stem_of(inputs[0])}.{command}.jsonl")
