"""The options of `jlm train`, `jlm data` and `jlm adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jlm_cli.cli_options import Device, FieldMap, Schema, TemplateName, fields_named
from jlm_cli.errors import UsageError

EXAMPLES = """[bold]Examples[/bold]

  jlm train pairs.jsonl -m tiny-base -o judge        defaults that fit base and data\n
  jlm train judgelm_train_100k.jsonl -m lmsys/vicuna-7b-v1.3 -o judge --recipe paper\n
  accelerate launch --config_file recipes/7b-zero3.yaml -m jlm_cli train ...   several GPUs\n
"""

_BY_RECIPE = "  \\[default: by the recipe]"
SaveDtype = Annotated[
    Literal["bfloat16", "float32", "float16"], typer.Option(help="Of the weights in the folder.")
]


def train(
    inputs: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Rows with a teacher's judgments.")
    ],
    base: Annotated[str, typer.Option("-m", "--model", metavar="BASE", help="What to start from.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The judge.")],
    recipe: Annotated[
        Literal["auto", "paper"],
        typer.Option(help="auto fits base and data; paper is Table 8 of JudgeLM."),
    ] = "auto",
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", min=0, help=f"The highest.{_BY_RECIPE}"),
    ] = None,
    schedule: Annotated[
        Literal["cosine", "linear", "constant"] | None,
        typer.Option(help=f"How the learning rate falls behind the warm-up.{_BY_RECIPE}"),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, max=0.99, help=f"Share of all steps.{_BY_RECIPE}")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help=f"Samples for a step, of all processes together.{_BY_RECIPE}"),
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Samples in one pass of one process.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help=f"Times that all samples are shown.{_BY_RECIPE}")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Longest sample in tokens; of longer ones answers are cut.{_BY_RECIPE}"
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Rank of adapters; 0 trains all weights (of an adapter, merged with its base)."
            + _BY_RECIPE,
        ),
    ] = None,
    freeze: Annotated[
        Literal["none", "embeddings"] | None, typer.Option(help="Weights that stay as they are.")
    ] = None,
    freeze_layers: Annotated[
        int | None, typer.Option(min=0, help="The first N layers stay as they are, too.")
    ] = None,
    line_weight: Annotated[
        float | None,
        typer.Option(min=0, help="What a token of the score line counts beside one of a reason."),
    ] = None,
    gradient_checkpointing: Annotated[
        Literal["on", "off"] | None,
        typer.Option(
            "--recompute",
            help=f"Gradient checkpointing: less memory, a third more time.{_BY_RECIPE}",
        ),
    ] = None,
    swap_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of samples shown with answers swapped.")
    ] = 0.5,
    reference_drop: Annotated[
        float,
        typer.Option(min=0, max=1, help="Of samples with a reference, the share shown without it."),
    ] = 0.5,
    scores_only: Annotated[
        bool, typer.Option("--scores-only", help="Learn the score line alone, no reasons.")
    ] = False,
    explain_first: Annotated[
        bool, typer.Option("--explain-first", help="Learn the reason before the score line.")
    ] = False,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA=W", help="How often a file's rows come in an epoch."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Rows to watch progress on.  \\[default: some questions held out]"),
    ] = None,
    template: TemplateName = None,
    device: Device = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option(help="What products are computed in.  \\[default: as the device is fast]"),
    ] = None,
    checkpoints: Annotated[
        int, typer.Option(min=1, help="How often to save, and to judge the watched rows.")
    ] = 10,
    save_dtype: SaveDtype = "bfloat16",
    licence: Annotated[
        str | None, typer.Option(help="Licence of the data, for the model card.")
    ] = None,
    schema: Schema = "auto",
    field_map: FieldMap = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the order and the swaps.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that jlm trained.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and no bar.")] = False,
) -> None:
    """Fine-tune a language model into a judge; a killed run goes on with the same command."""
    from jlm_cli import train
    from jlm_cli.training.course import TrainConfig
    from jlm_cli.training.examples import Form
    from jlm_cli.training.lessons import Shares

    if scores_only and explain_first:
        raise UsageError("--scores-only and --explain-first exclude each other")
    if explain_first and template is not None:
        raise UsageError("--explain-first and --template exclude each other")
    changes: dict[str, Any] = {
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "batch": batch,
        "epochs": epochs,
        "max_length": max_length,
        "lora": lora,
        "freeze": freeze,
        "freeze_layers": freeze_layers,
        "line_weight": line_weight,
        "gradient_checkpointing": gradient_checkpointing and gradient_checkpointing == "on",
    }
    config = TrainConfig(
        inputs=tuple(inputs),
        output=output,
        base=base,
        recipe=recipe,
        changes=tuple((k, v) for k, v in changes.items() if v is not None),
        weights=tuple(_weight(text) for text in weight or ()),
        shares=Shares(swap_share, reference_drop),
        form=Form(explain_first, scores_only),
        validation=validation,
        template=template,
        device=device,
        dtype=dtype,
        micro_batch=micro_batch,
        checkpoints=checkpoints,
        save_dtype=save_dtype,
        licence=licence,
        schema=schema,
        field_map=fields_named(field_map),
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
    )
    raise typer.Exit(train.run(config))


DATA_EXAMPLES = """[bold]Examples[/bold]

  jlm data alpaca_scored.jsonl.gz reviews.jsonl -o set --rows 20000

  jlm data scored.jsonl -o plain --bad 0.8 --longest 300 --reference 0    plain pairs to begin with

  jlm data scored.jsonl -o set --form pair=0.6 --form list=0.2 --form grade=0.2

"""


def data(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Rated answers, judged pairs or preferences."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to.")],
    rows: Annotated[
        int | None, typer.Option(min=1, help="Training rows.  \\[default: by the sources]")
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(metavar="FORM=SHARE", help="pair, list or grade.  \\[default: pair=1]"),
    ] = None,
    bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows with a plainly bad answer.")
    ] = 0.4,
    bad_kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="off-topic, cut-off, ...  \\[default: all]"),
    ] = None,
    reference: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows with a reference, where there is.")
    ] = 0.5,
    ties: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows that may hold equal scores.")
    ] = 0.05,
    gap: Annotated[
        float, typer.Option(min=0, max=7, help="Points that real answers in a row are apart.")
    ] = 1.0,
    validation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of questions for validation.")
    ] = 0.1,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Questions that must be on neither side."),
    ] = None,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Longest answer that is taken, in characters.")
    ] = None,
    answers: Annotated[int, typer.Option(min=3, max=10, help="Most answers in a list.")] = 4,
    schema: Schema = "auto",
    field_map: FieldMap = None,
    seed: Annotated[int, typer.Option()] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a set made here.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes.")] = False,
) -> None:
    """Make training and validation rows from sources that carry scores."""
    from jlm_cli.training import data as making
    from jlm_cli.training.gathering import DataConfig

    config = DataConfig(
        inputs=tuple(inputs),
        output=output,
        rows=rows,
        forms=making.forms_of(form or ()),
        bad=bad,
        bad_kinds=tuple(bad_kind or ()),
        reference=reference,
        ties=ties,
        gap=gap,
        validation=validation,
        hold_out=tuple(hold_out or ()),
        longest=longest,
        answers=answers,
        schema=schema,
        field_map=fields_named(field_map),
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
    )
    raise typer.Exit(making.run(config))


def adapter(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that was trained whole.")],
    base: Annotated[str, typer.Option("-m", "--model", metavar="BASE", help="What it was.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The adapter.")],
    rank: Annotated[int, typer.Option(min=1, help="More keeps more, and takes more room.")] = 32,
    save_dtype: SaveDtype = "bfloat16",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that jlm made.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes.")] = False,
) -> None:
    """Turn a fully trained model into a small low-rank adapter of its base."""
    from jlm_cli.training import low_rank

    config = low_rank.AdapterConfig(model, base, output, rank, save_dtype, overwrite, quiet)
    raise typer.Exit(low_rank.run(config))


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not name or not 0 <= weight < 1000:
        raise UsageError(f"--weight {text}: write it as DATA=W, like --weight grades.jsonl=0.5")
    return name, weight
