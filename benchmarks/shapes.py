"""Models of JudgeLM's and Gemma's sizes without their weights, to measure speed where none are
at hand.

    python benchmarks/shapes.py 7b shape-7b
    python benchmarks/throughput.py --model shape-7b --input pairs.jsonl

A shape is a folder with a config and the built-in model's tokenizer; a benchmark draws its weights
on the device. How fast a model is does not depend on them, only what it says.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jlm_cli import devices, loading
from jlm_cli.builtin import builtin_base


@dataclass(frozen=True)
class Shape:
    """Width, width of the gated layers, layers, heads; `more` of its family's config."""

    family: str
    wide: int
    gated: int
    layers: int
    heads: int
    context: int
    more: Mapping[str, int] = field(default_factory=dict)


def _gemma(keys: int, size: int, window: int) -> dict[str, int]:
    """Heads of keys, the size of a head, and what the layers with a window see."""
    return {"num_key_value_heads": keys, "head_dim": size, "sliding_window": window}


# LLaMA's: arXiv 2302.13971, table 2; Gemma's: the configs that are published with their weights
SHAPES = {
    "7b": Shape("Llama", 4096, 11008, 32, 32, 2048),
    "13b": Shape("Llama", 5120, 13824, 40, 40, 2048),
    "33b": Shape("Llama", 6656, 17920, 60, 52, 2048),
    "gemma-2-9b": Shape("Gemma2", 3584, 14336, 42, 16, 8192, _gemma(8, 256, 4096)),
    "gemma-3-270m": Shape("Gemma3Text", 640, 2048, 18, 4, 8192, _gemma(1, 256, 512)),
    "gemma-3-12b": Shape("Gemma3Text", 3840, 15360, 48, 16, 8192, _gemma(8, 256, 1024)),
}
_BYTES = 2  # of a weight


def write(shape: Shape, folder: Path) -> None:
    import transformers

    base = builtin_base(print)
    config = getattr(transformers, f"{shape.family}Config")(
        hidden_size=shape.wide,
        intermediate_size=shape.gated,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context,
        vocab_size=len(transformers.AutoTokenizer.from_pretrained(base)),
        **shape.more,
    )
    config.save_pretrained(folder)
    for path in base.iterdir():
        if path.name.startswith("tokenizer"):
            shutil.copyfile(path, folder / path.name)


def is_shape(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not any(folder.glob("*.safetensors"))


def draw_weights() -> None:
    """From here on, models are loaded with weights drawn on their device."""
    loading.load_model = _drawn  # type: ignore[assignment]
    devices.weight_bytes = _weight_bytes  # type: ignore[assignment]


def _drawn(files: Any, dtype: str, device: Any, quantize: None = None) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.from_pretrained(files.folder)
        kind: Any = AutoModelForCausalLM
        return kind.from_config(config, dtype=getattr(torch, dtype)).eval()


def _weight_bytes(files: Any, dtype: str, quantize: None) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        kind: Any = AutoModelForCausalLM
        model = kind.from_config(AutoConfig.from_pretrained(files.folder))
    return sum(int(weights.numel()) for weights in model.parameters()) * _BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer, for a trial")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    write(replace(shape, layers=options.layers or shape.layers), options.folder)


if __name__ == "__main__":
    main()
