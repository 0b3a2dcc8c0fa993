"""Options that several commands have, by one name and one help each."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jlm_cli.config import Quantize
from jlm_cli.errors import UsageError

# of tables whose import takes long; tests hold them to these
PROTOCOLS = ("judgelm", "pandalm", "rewardbench", "rank", "mmvet", "grade", "aspects")
SCHEMAS = ("native", "native-answer", "judgelm", "pandalm", "alpaca", "rewardbench")


def _templates() -> list[str]:
    from jlm_cli.prompts import names  # not for --help

    return names()


ModelName = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        help="tiny, tiny-base, a folder, a .gguf file or a hub id with @REVISION.  "
        "\\[default: $JLM_MODEL, else JudgeLM-7B on CUDA, else tiny]",
        autocompletion=lambda: ["tiny", "tiny-base"],
    ),
]
TemplateName = Annotated[
    str | None,
    typer.Option(
        help="Prompt template: a name from prompts/ or a .toml file.", autocompletion=_templates
    ),
]
Device = Annotated[
    Literal["cpu", "cuda", "mps"] | None, typer.Option(help="Where to compute: a GPU, if any.")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Format of numbers: bfloat16 where it is fast."),
]
Bits = Annotated[
    Quantize | None,
    typer.Option(
        help="Fewer bits: by bitsandbytes (extra: quantize), or fp8, which GPUs from Ada and "
        "Hopper on multiply twice as fast."
    ),
]
Schema = Annotated[
    str,
    typer.Option(
        help=f"Input format: {', '.join(SCHEMAS)}; auto is told by its fields.",
        autocompletion=lambda: ["auto", *SCHEMAS],
    ),
]
FieldMap = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="NATIVE=FIELD", help="Name the fields of another format."),
]


def fields_named(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """NATIVE=FIELD of each `--map`. Raises UsageError."""
    named = []
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--map {text}: write it as NATIVE=FIELD, like --map question=prompt")
        named.append((name, value))
    return tuple(named)
