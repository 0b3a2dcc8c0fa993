"""Where a GPU's time goes: the pieces of a layer by themselves, and a whole batch by its kernels.

    python benchmarks/shapes.py 7b shape-7b
    python benchmarks/pieces.py --model shape-7b --input pairs.jsonl

Pieces are of one layer and a full pass of rows of 600 tokens, with random numbers; where jlm has
replaced one, what it replaced stands beside it. The batch is the middle one of the input's plan,
judged once before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import draw_weights, is_shape
from throughput import machine, now, tell
from torch.nn import RMSNorm, functional
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from jlm_cli import loading, models, preflight, runner
from jlm_cli.config import Config
from jlm_cli.devices import choose_device, choose_dtype, version_of_kernels
from jlm_cli.engine import Judge
from jlm_cli.hf import kernels, packed_attention, rotary
from jlm_cli.hf.attention import AttentionSpec, computing, kernel_for, reads_rows_at_once
from jlm_cli.hf.blocks import Blocks, Prompts
from jlm_cli.hf.layers import CpuNorm
from jlm_cli.hf.memory import keep_memory
from jlm_cli.hf.packing import Segment
from jlm_cli.hf.tiles import TiledBlocks
from jlm_cli.hf_engine import CPU_PACK_BYTES, GPU_PACK
from jlm_cli.report import Report
from jlm_cli.survey import take_survey

Json = dict[str, Any]
Piece = tuple[str, Callable[[], object]]
ROW, SHARED = 600, 200  # tokens
SECONDS = 0.15  # a piece is repeated for so long
KERNELS = 20  # named, the longest


def pieces(config: Any, device: torch.device, dtype: torch.dtype, tokens: int) -> Iterator[Piece]:
    wide, gated, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    groups = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or wide // heads

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    states, gate, up = some(1, tokens, wide), some(1, tokens, gated), some(1, tokens, gated)
    narrow, across, back = some(heads * size, wide), some(gated, wide), some(wide, gated)
    yield "product: queries", lambda: functional.linear(states, narrow)
    yield "product: gate", lambda: functional.linear(states, across)
    yield "product: down", lambda: functional.linear(gate, back)
    if kernels.are_usable(device):  # where layers are joined
        joint, gates = some((heads + 2 * groups) * size, wide), some(2 * gated, wide)
        yield "product: queries, keys, values", lambda: functional.linear(states, joint)
        yield "product: both gates", lambda: functional.linear(states, gates)
    kind = CpuNorm if device.type == "cpu" else RMSNorm
    norm = kind(wide, 1e-5, device=device, dtype=dtype)
    yield "norm", lambda: norm(states)
    others = some(1, tokens, wide)
    yield "sum", lambda: states + others
    yield "gating: torch", lambda: functional.silu(gate) * up
    query, key, value = (some(1, tokens, n, size).transpose(1, 2) for n in (heads, groups, groups))
    angle = torch.arange(tokens, device=device)[None, :, None] % ROW * some(size // 2).float()
    waves = [one.repeat(1, 1, 2).to(dtype) for one in (angle.cos(), angle.sin())]
    yield "turning: transformers", lambda: apply_rotary_pos_emb(query, key, *waves)
    yield "turning: by halves", lambda: rotary._by_halves(query, key, *waves)
    if kernels.are_usable(device):
        yield "gating: kernel", lambda: kernels.silu_times(gate, up)
        turned = query.clone(), key.clone()
        yield "turning: kernel", lambda: rotary.by_kernel(*turned, *waves)
    yield from attention(query, key, value)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Iterator[Piece]:
    """With keys and values put into their blocks, one row after the other and all at once; rows by
    themselves, and such as share a third with the one before."""
    n_rows, kernel = query.shape[2] // ROW, kernel_for(query.device, query.dtype, AttentionSpec())
    for name, shared in (("", 0), (", a third shared", SHARED)):
        segments = [Segment(0, 0, ROW)]
        sources = [n - 1 if shared else None for n in range(1, n_rows)]
        segments += [Segment(n, shared, ROW, one) for n, one in enumerate(sources, 1)]
        blocks = TiledBlocks(query.device) if kernels.are_usable(query.device) else Blocks()
        prompts = Prompts.of(segments, query.device)
        blocks.begin(n_rows, ROW + 200)
        pack = packed_attention.Pack(blocks, segments, None, None)
        n_tokens = pack.n_prompt_tokens
        states = query[:, :, :n_tokens], key[:, :, :n_tokens], value[:, :, :n_tokens]
        one_by_one = partial(packed_attention._row_by_row, pack, 0, states, kernel, AttentionSpec())
        yield (
            f"keys, values, attention: row by row{name}",
            lambda read=one_by_one: torch.cat(list(read())),  # type: ignore[misc]
        )
        if reads_rows_at_once(query.device, query.dtype):
            yield (
                f"keys, values, attention: at once{name}",
                partial(packed_attention._at_once, prompts, blocks, 0, states, AttentionSpec()),
            )


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one, the mean of many; the first two are not counted."""

    def run(times: int) -> float:
        start = now(device.type)
        for _ in range(times):
            work()
        return now(device.type) - start

    run(1)
    times = max(1, min(200, int(SECONDS / max(run(1), 1e-5))))
    return round(1000 * run(times) / times, 3)


def batch_of(options: argparse.Namespace) -> Json:
    """A batch by the kernels that it took; on a CPU, by torch's functions."""
    config = Config(
        inputs=(str(options.input),), output=None, model=options.model, template="judgelm",
        limit=options.rows, device=options.device, dtype=options.dtype,
    )  # fmt: skip
    run = preflight.open_run(config, Report(quiet=True))
    plan = preflight.plan_of(run, take_survey(run.rows, run.encoder, lambda _: None))
    engine = loading.load_engine(run.files, run.lines.vocabulary, run.compute)
    judge = Judge(engine, run.lines, reason=False, new_tokens=0)
    rows = plan.batch(len(plan) // 2)
    list(runner.judged_batches(run, [rows], judge))
    device = torch.device(run.compute.device)
    on_gpu = device.type == "cuda"
    seen = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=seen, acc_events=True) as found:
        start = now(device.type)
        list(runner.judged_batches(run, [rows], judge))
        seconds = now(device.type) - start
    told = [e for e in found.key_averages() if str(e.device_type).endswith("CUDA") == on_gpu]
    took = {e: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in told}
    longest = sorted(told, key=lambda event: -took[event])[:KERNELS]
    return {
        "rows": len(rows),
        "ms_while_profiled": round(1000 * seconds, 1),
        "ms_of_kernels": round(sum(took.values()) / 1000, 1),
        "launches": sum(event.count for event in told),
        "longest": [
            {"ms": round(took[event] / 1000, 2), "calls": event.count, "kernel": event.key[:100]}
            for event in longest
        ],
    }


def main() -> None:
    options = _options()
    kind = choose_device(options.device)
    device = torch.device(kind)
    dtype = getattr(torch, choose_dtype(options.dtype, kind))
    keep_memory()  # as a run does
    tokens = options.tokens or (GPU_PACK if kind == "cuda" else CPU_PACK_BYTES // dtype.itemsize)
    folder = models.find(options.model, Report().note).folder
    config = AutoConfig.from_pretrained(folder).get_text_config()
    with computing():
        found = {
            name: milliseconds(work, device) for name, work in pieces(config, device, dtype, tokens)
        }
    if is_shape(Path(options.model)):
        draw_weights()
    result: Json = {
        "pieces_ms": found,
        "batch": batch_of(options),
        "conditions": {
            "tokens_of_a_pass": tokens,
            "input": options.input.name,
            "model": Path(options.model).name,
            "device": machine(kind),
            "dtype": str(dtype).split(".")[1],
            "torch": torch.__version__,
            "kernels": version_of_kernels() if kind == "cuda" else None,
        },
    }
    tell(result, options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--input", type=Path, default=root / "samples" / "pairs.jsonl")
    parser.add_argument("--rows", type=int, default=520)
    parser.add_argument("--model", required=True, help="as of jlm, or a folder of shapes.py")
    parser.add_argument("--tokens", type=int, help="of a pass")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
