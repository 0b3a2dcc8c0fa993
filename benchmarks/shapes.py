"""Models of JudgeLM's sizes without their weights, to measure speed where none are at hand.

    python benchmarks/shapes.py 7b shape-7b
    python benchmarks/throughput.py --model shape-7b --input pairs.jsonl

A shape is a folder with a config and the built-in model's tokenizer; a benchmark draws its weights
on the device. How fast a model is does not depend on them, only what it says.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from jlm_cli import devices, loading
from jlm_cli.builtin import builtin_base

# width, width of the gated layers, layers, heads: LLaMA's (arXiv 2302.13971, table 2)
SHAPES = {
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
    "33b": (6656, 17920, 60, 52),
}
_CONTEXT = 2048
_BYTES = 2  # of a weight


def write(shape: tuple[int, int, int, int], folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig

    base = builtin_base(print)
    wide, gated, layers, heads = shape
    config = LlamaConfig(
        hidden_size=wide,
        intermediate_size=gated,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_CONTEXT,
        vocab_size=len(AutoTokenizer.from_pretrained(base)),
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
    wide, gated, layers, heads = SHAPES[options.shape]
    write((wide, gated, options.layers or layers, heads), options.folder)


if __name__ == "__main__":
    main()
