"""Pairs per second on the same rows: the official way, padded generation, and jlm.

    python benchmarks/throughput.py --input pairs.jsonl --rows 48 --rounds 3

Every round runs all three, one after the other, on the same model; the ratios printed are
medians over rounds. (a) is what JudgeLM's released code does: one prompt at a time, float32 on
CPU and float16 on CUDA, at most 8 tokens, until a newline. (b) generates in padded batches, in
input order, in the dtype that jlm takes. (c) is jlm, from rows to records.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import GenerationConfig, PreTrainedModel

from jlm_cli import models, runner
from jlm_cli.batching import make_plan
from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Templates
from jlm_cli.engine import Judge
from jlm_cli.hf_engine import TreeEngine, make_engine
from jlm_cli.rows import open_rows
from jlm_cli.scoreline import Grammar, LineTokens

PADDED_BATCH = 8
NEW_TOKENS = 8

Prompts = list[list[int]]


def main() -> None:
    options = _options()
    files = models.find(options.model, print)
    device = models.choose_device(options.device)
    dtype = models.choose_dtype(options.dtype, device)
    vocabulary = models.load_vocabulary(files)
    config = Config((str(options.input),), None, files.name, limit=options.rows, device=device)
    rows = open_rows(config)
    templates = Templates.of(None)
    line = LineTokens.build(
        Grammar(),
        templates.plain.tail,
        lambda text: list(vocabulary.locate(text).ids),
        models.line_ends(vocabulary),
    )
    encoder = Encoder(vocabulary, templates, config, line.longest)
    samples = [rows.sample(row) for row in range(len(rows))]
    prompts = [list(one[0].ids) for one in encoder.encode(samples) if isinstance(one, list)]
    sizes = [len(prompt) for prompt in prompts]

    official = models.load_model(files, "float16" if device == "cuda" else "float32", device)
    model = models.load_model(files, dtype, device)
    newlines = sorted(set(models.line_ends(vocabulary)))
    engine = make_engine(models.load_model(files, dtype, device), vocabulary)
    judge = Judge(engine, line, vocabulary)
    groups = [hash_of(sample.question) for sample in samples]
    budget = models.batch_tokens(files, device, dtype)
    plan = make_plan(range(len(rows)), sizes, groups, budget)

    def jlm() -> None:
        for batch in plan:
            runner.judge_batch(rows, batch, encoder, judge)

    def one_by_one() -> None:
        for prompt in prompts:
            generate(official, [prompt], newlines)

    def padded() -> None:
        for start in range(0, len(prompts), PADDED_BATCH):
            generate(model, prompts[start : start + PADDED_BATCH], newlines)

    ways = {"official": one_by_one, "padded_generate": padded, "jlm": jlm}
    rounds = []
    for number in range(options.rounds):
        rates = {name: matmul_rate(name, device, model) for name in ("bfloat16", "float32")}
        fed = getattr(engine, "tokens_fed", 0)
        seconds = {name: timed(way, device) for name, way in ways.items()}
        fed = getattr(engine, "tokens_fed", 0) - fed
        rounds.append({"seconds": seconds, "matmul_gflops": rates, "tokens_fed": fed})
        print(f"round {number + 1}: {seconds}", flush=True)
    result = report(rounds, sizes, model, dtype)
    result["conditions"] = {
        "input": options.input.name,
        "model": files.name,
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu(),
        "dtype": dtype,
        "engine": type(engine).__name__ if isinstance(engine, TreeEngine) else "plain",
        "batch_tokens": budget,
        "torch": torch.__version__,
    }
    packed = orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    print(packed.decode())
    if options.output is not None:
        options.output.write_bytes(packed)


def report(
    rounds: list[dict[str, Any]], sizes: list[int], model: PreTrainedModel, dtype: str
) -> dict[str, Any]:
    """Ratios between the ways, and how near jlm comes to the machine's matmul rate."""

    def median(value: Callable[[dict[str, Any]], float]) -> float:
        return round(statistics.median(value(one) for one in rounds), 3)

    per_token = 2 * sum(
        layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and "lm_head" not in name
    )

    def share(one: dict[str, Any], kind: str) -> float:
        """Of the matmul rate: the layers' products for the tokens that were really fed."""
        rate = per_token * one["tokens_fed"] / one["seconds"]["jlm"] / 1e9
        return float(rate / one["matmul_gflops"][kind])

    return {
        "rows": len(sizes),
        "prompt_tokens_median": int(statistics.median(sizes)),
        "prompt_tokens_total": sum(sizes),
        "rounds": rounds,
        "pairs_per_second": {
            name: median(lambda one, name=name: len(sizes) / one["seconds"][name])  # type: ignore[misc]
            for name in rounds[0]["seconds"]
        },
        "jlm_over_official": median(lambda o: o["seconds"]["official"] / o["seconds"]["jlm"]),
        "jlm_over_padded_generate": median(
            lambda one: one["seconds"]["padded_generate"] / one["seconds"]["jlm"]
        ),
        "share_of_bf16_matmul_rate": median(lambda one: share(one, "bfloat16")),
        "share_of_used_matmul_rate": median(lambda one: share(one, dtype)),
        "tokens_fed_over_prompt_tokens": median(lambda one: one["tokens_fed"] / sum(sizes)),
    }


def generate(model: PreTrainedModel, prompts: Prompts, ends: list[int]) -> None:
    """Greedy decoding of left-padded prompts until a newline, at most NEW_TOKENS."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    seen = torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    how = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=ends, pad_token_id=0
    )
    with torch.inference_mode():
        model.generate(ids, attention_mask=seen, generation_config=how)  # type: ignore[operator]


def timed(way: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return round(time.perf_counter() - start, 4)


def matmul_rate(dtype: str, device: str, model: PreTrainedModel) -> float:
    """GFLOP/s of the largest product in a layer, over 2,048 tokens: the best of five."""
    config = model.config.get_text_config()
    shape = (config.intermediate_size, config.hidden_size)
    weight = torch.randn(shape, device=device).to(getattr(torch, dtype))
    tokens = torch.randn(2048, config.hidden_size, device=device).to(weight.dtype)

    def product() -> None:
        for _ in range(10):
            torch.nn.functional.linear(tokens, weight)

    product()
    best = min(timed(product, device) for _ in range(5))
    return round(2 * 2048 * shape[0] * shape[1] * 10 / best / 1e9, 1)


def hash_of(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode())


def _cpu() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--input", type=Path, default=root / "samples" / "pairs.jsonl")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
