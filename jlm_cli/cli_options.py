"""Options that several commands have, by one name and one help each."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jlm_cli.config import Quantize
from jlm_cli.errors import UsageError

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
        help="Input format: native, native-answer, judgelm, pandalm, alpaca, rewardbench; auto is "
        "told by its fields."
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
