"""Pairs per second on the same rows: the official way, two better ones, and jlm.

    python benchmarks/throughput.py --input pairs.jsonl --rows 48 --rounds 3

Each way runs in a process of its own, as its users would run it, with the weights loaded before
the clock starts; in every round all take their turn, and the ratios printed are medians over
rounds. (a) `official` is what JudgeLM's released code does: one prompt at a time, float32 on CPU
and float16 on CUDA, at most 8 tokens, until a newline. (b) `padded_generate` generates in padded
batches, in input order, in the dtype that jlm takes. (c) `jlm` goes from rows to records.
(d) `continuous` is transformers' own continuous batching, `generate_batch`, in the same dtype, its
manager kept so that only the first round sets it up. (e) `jlm_fp8` is jlm with `--quantize fp8`,
for GPUs, and where `--ways` names it.

An untrained model (`tiny-base`, a folder of shapes.py) would end at once with a newline instead of
a score line; the others then write as many tokens as the shortest score line has, and no more. With
`--reason N` all go on behind the line until the model ends, for at most N tokens.

A GPU has no room for four models: there the ways run one after the other, each all of its rounds,
jlm first, and only jlm judges all rows, which should be a thousand or so; the others judge every
sixteenth, or as `--every` says. `--ways jlm` measures that alone, where nothing else would fit.
What is known is written to `--output` behind each of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from shapes import draw_weights, is_shape
from transformers import GenerationConfig, PreTrainedModel

from jlm_cli import loading, preflight, runner
from jlm_cli.batching import Plan
from jlm_cli.config import Config
from jlm_cli.devices import choose_device
from jlm_cli.engine import Judge
from jlm_cli.hf.float8 import Float8Linear
from jlm_cli.hf.layers import OneDnnLinear
from jlm_cli.hf.packing import Tokens
from jlm_cli.hf_engine import GPU_PACK, PackedEngine
from jlm_cli.records import dump_indented
from jlm_cli.report import Report
from jlm_cli.scoreline import LineTokens
from jlm_cli.survey import take_survey

OURS = ("jlm", "jlm_fp8")
OTHERS = ("official", "padded_generate", "continuous")
PADDED_BATCH, PADDED_BATCH_GPU = 8, 32
EVERY = 16  # on a GPU, which of the rows the other ways judge
LEAST_BATCHES = 6  # of jlm on a GPU: a batch by itself overlaps with none
MOST_TOKENS = 8

Json = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The same for all ways: rows, model, device, dtype."""

    run: preflight.Run
    prompts: list[list[int]]
    reason: int  # tokens at most; 0 for scores alone

    @property
    def line(self) -> LineTokens:
        return self.run.lines.of(self.run.mode.templates[0], 2)

    @property
    def ends(self) -> list[int]:
        return list(self.run.lines.vocabulary.ends if self.reason else self.line.ends)

    @property
    def most(self) -> int:
        return self.reason or self.least or MOST_TOKENS

    @property
    def least(self) -> int:
        """Tokens that an untrained model is made to write; 0 for a trained one, which knows."""
        return 0 if self.trained else len(self.line.spell(["8", "5"])) + 1

    @property
    def trained(self) -> bool:
        return not (self.run.files.untrained or is_shape(self.run.files.folder))

    @property
    def plan(self) -> Plan:
        return preflight.plan_of(
            self.run, take_survey(self.run.rows, self.run.encoder, lambda _: None)
        )


def setting_of(options: argparse.Namespace) -> Setting:
    config = Config(
        inputs=(str(options.input),),
        output=None,
        model=options.model,
        template="judgelm",  # the paper's, whatever the judge was taught with
        limit=options.rows,
        device=options.device,
        dtype=options.dtype,
        quantize="fp8" if options.way == "jlm_fp8" else None,
        reason=bool(options.reason),
    )
    run = preflight.open_run(config, Report(quiet=True))
    encoded = run.encoder.encode([run.rows.sample(row) for row in range(len(run.rows))])
    prompts = [list(one[0].ids) for one in encoded if isinstance(one, list)]
    if run.compute.device == "cuda" and options.way in OTHERS:  # of all lengths alike
        prompts = sorted(prompts, key=len)[options.every // 2 :: options.every]
    return Setting(run, prompts, options.reason)


Work = Callable[[], Json]


def work_of(name: str, setting: Setting) -> tuple[PreTrainedModel, Work]:
    """The model of a way, and one round of it, which tells how many tokens it `fed`."""
    compute = setting.run.compute
    official = "float16" if compute.device == "cuda" else "float32"
    dtype = official if name == "official" else compute.dtype
    if name in OURS:
        return _jlm(setting)
    model = loading.load_model(setting.run.files, dtype, compute.device)
    if name == "continuous":
        return model, _continuous(model, setting)
    padded = PADDED_BATCH_GPU if compute.device == "cuda" else PADDED_BATCH
    size = 1 if name == "official" else padded
    how = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        min_new_tokens=setting.least,
        max_new_tokens=setting.most,
        eos_token_id=setting.ends,
        pad_token_id=0,
    )

    def generate_all() -> Json:
        starts = range(0, len(setting.prompts), size)
        parts = [setting.prompts[start : start + size] for start in starts]
        return {"fed": sum(_generate(model, part, how) for part in parts)}

    return model, generate_all


def _continuous(model: PreTrainedModel, setting: Setting) -> Work:
    """transformers' scheduler, with its own paged cache."""
    how = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=setting.most,
        eos_token_id=-1 if setting.least else setting.ends,
        pad_token_id=0,
    )

    def generate_all() -> Json:
        found = model.generate_batch(  # type: ignore[operator]
            setting.prompts, generation_config=how, progress_bar=False, persistent_manager=True
        )
        if len(found) != len(setting.prompts) or any(one.error for one in found.values()):
            raise SystemExit("continuous batching left rows out")
        return {"fed": sum(map(len, setting.prompts))}

    return generate_all


def _jlm(setting: Setting) -> tuple[PreTrainedModel, Work]:
    """Tells of its prefills as well, which are most of its time and nearly all of its products."""
    run = setting.run
    engine = loading.load_engine(run.files, run.lines.vocabulary, run.compute)
    assert isinstance(engine, PackedEngine)
    judge = Judge(engine, run.lines, bool(setting.reason), setting.reason)
    plan = setting.plan
    run_pass, device = engine.run, run.compute.device
    behind = _products_behind(engine)
    if device == "cuda" and judge.at_once > 1 and len(plan) < LEAST_BATCHES:
        raise SystemExit(f"{len(plan)} batches: take more --rows")
    spent: Json = {}
    prefills: list[tuple[Any, Any]] = []

    def counted(tokens: Tokens, *rest: Any) -> torch.Tensor:
        start = _mark(device)
        known = run_pass(tokens, *rest)
        beside = _beside_layers(tokens, engine.model)
        spared = behind * (len(tokens.ids) - len(tokens.kept)) if tokens.segments else 0
        for part in ("", "prefill_") if tokens.segments else ("",):
            spent[f"{part}fed"] += len(tokens.ids)
            spent[f"{part}beside"] += beside
            spent[f"{part}spared"] += spared
        if tokens.segments:
            prefills.append((start, _mark(device)))
        return known

    engine.run = counted  # type: ignore[method-assign, assignment]

    def judge_all() -> Json:
        counts = ("fed", "beside", "spared")
        spent.update({f"{part}{count}": 0 for part in ("", "prefill_") for count in counts})
        prefills.clear()
        for records in runner.judged_batches(run, plan, judge):
            if any(b'"error"' in record or b"split-batch" in record for _, record in records):
                raise SystemExit("jlm judged a row in vain, or a batch in halves")
        now(device)
        return {**spent, "prefill_seconds": sum(_between(*marks) for marks in prefills)}

    return engine.model, judge_all


def _mark(device: str) -> Any:
    """A moment: on CUDA one of the device's own, for which nothing waits."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    """Seconds."""
    return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1000)


def _generate(model: PreTrainedModel, prompts: list[list[int]], how: GenerationConfig) -> int:
    """Decode left-padded prompts."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    seen = torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=seen, generation_config=how)  # type: ignore[operator]
    return int(out.numel())


def child(options: argparse.Namespace) -> None:
    """Serve rounds of one way: for each line read, run it once and print what it took."""
    if is_shape(Path(options.model)):
        draw_weights()
    setting = setting_of(options)
    model, work = work_of(options.way, setting)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    facts = {"parameters_per_token": _products(model), "dtype": str(model.dtype).split(".")[1]}
    answers.write(orjson.dumps(facts) + b"\n")
    for _ in sys.stdin:
        start = now(setting.run.compute.device)
        done = work()
        seconds = now(setting.run.compute.device) - start
        device = setting.run.compute.device
        rates = {kind: _matmul_rate(kind, device, model) for kind in _RATES[device]}
        told = {"rows": len(setting.prompts), "seconds": seconds, **done, "gflops": rates}
        answers.write(orjson.dumps(told) + b"\n")


_RATES = {"cpu": ("bfloat16", "float32"), "cuda": ("bfloat16",)}
_RATE_CPU = 2048, 36 * 10**9  # tokens, and operations in one measurement: a tenth of a second
_RATE_GPU = GPU_PACK, 240 * 10**12  # a third of a second, so that the power limit counts


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _products(model: PreTrainedModel) -> int:
    """Multiply-adds of the layers for one token."""
    return _weights(layer for name, layer in model.named_modules() if "lm_head" not in name)


def _weights(layers: Iterable[torch.nn.Module]) -> int:
    kinds = torch.nn.Linear, OneDnnLinear, Float8Linear
    return sum(layer.weight.numel() for layer in layers if isinstance(layer, kinds))


def _products_behind(engine: PackedEngine) -> int:
    """Multiply-adds for one token behind the last attention, which not every token takes."""
    parts = (engine.model.get_submodule(name) for name in engine.behind)
    return _weights(layer for part in parts for layer in part.modules())


def _beside_layers(tokens: Tokens, model: PreTrainedModel) -> int:
    """Multiply-adds of a pass beside its layers': attention to what is seen, and the vocabulary."""
    config = model.config.get_text_config()
    spans = [(segment.start, segment.end) for segment in tokens.segments]
    seen = sum((end * (end + 1) - start * (start + 1)) // 2 for start, end in spans)
    seen += sum(int(tree.sees.sum()) for tree in tokens.trees)
    wide, heads = int(config.hidden_size), int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or wide // heads)
    attention = 2 * int(config.num_hidden_layers) * heads * size * seen
    return attention + wide * int(config.vocab_size) * len(tokens.kept)


def _matmul_rate(dtype: str, device: str, model: PreTrainedModel) -> float:
    """GFLOP/s of the largest product in a layer, over the tokens of a pass: the best of three."""
    config = model.config.get_text_config()
    wide, narrow = int(config.intermediate_size), int(config.hidden_size)
    n_tokens, operations = _RATE_GPU if device == "cuda" else _RATE_CPU
    weight = torch.randn(wide, narrow, device=device).to(getattr(torch, dtype))
    tokens = torch.randn(n_tokens, narrow, device=device).to(weight.dtype)
    product = 2 * n_tokens * wide * narrow
    repeats = max(1, operations // product)

    def once() -> float:
        start = now(device)
        for _ in range(repeats):
            torch.nn.functional.linear(tokens, weight)
        return now(device) - start

    once()
    return round(product * repeats / min(once() for _ in range(3)) / 1e9, 1)


def main() -> None:
    options = _options()
    if options.way:
        child(options)
        return
    n_rounds = options.rounds + 1  # the first warms up
    on_gpu = choose_device(options.device) == "cuda"
    ways = sorted(set(options.ways), key=(*OURS, *OTHERS).index)
    apart = [[way] for way in ways] if on_gpu else [ways]
    facts: dict[str, Json] = {}
    rounds: list[Json] = [{} for _ in range(n_rounds)]
    setting: Setting | None = None
    for together in apart:
        children = {way: _start(way) for way in together}
        setting = setting or setting_of(options)  # while they load
        facts |= {way: _answer(one) for way, one in children.items()}
        for one_round in rounds:
            one_round.update(_round(children))
        for child_ in children.values():
            child_.stdin.close()  # type: ignore[union-attr]
            child_.wait()
        result = _result(rounds[1:], facts, setting, options)
        if options.output is not None:
            options.output.write_bytes(dump_indented(result))
    tell(result, None)


def _start(way: str) -> subprocess.Popen[bytes]:
    # only jlm's own process asks for huge pages
    env = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1" if way in OURS else "0"}
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)


def _answer(one: subprocess.Popen[bytes]) -> Json:
    assert one.stdout is not None
    line = one.stdout.readline()
    if not line:
        raise SystemExit("a way of the benchmark failed; see above")
    answer: Json = orjson.loads(line)
    return answer


def _round(children: dict[str, subprocess.Popen[bytes]]) -> Iterator[tuple[str, Json]]:
    for way, one in children.items():
        assert one.stdin is not None
        one.stdin.write(b"go\n")
        one.stdin.flush()
        answer = _answer(one)
        print(f"{way}: {answer['rows']} rows in {answer['seconds']:.2f} s", file=sys.stderr)
        yield way, answer


def _result(
    rounds: list[Json], facts: dict[str, Json], setting: Setting, options: argparse.Namespace
) -> Json:
    """Ratios between the ways, and how near jlm comes to the machine's matmul rate."""
    sizes = [len(prompt) for prompt in setting.prompts]
    others = [way for way in facts if way in OTHERS]
    each_product = max(fact["parameters_per_token"] for fact in facts.values())

    def median(value: Callable[[Json], float]) -> float:
        return round(statistics.median(value(one) for one in rounds), 3)

    def share(one: Json, part: str = "", beside: bool = True) -> float:
        """Of the bfloat16 matmul rate: all products that were made of the tokens really fed."""
        took = one["jlm"]
        products = each_product * took[f"{part}fed"] - took[f"{part}spared"]
        products += took[f"{part}beside"] if beside else 0
        best = max(one[way]["gflops"]["bfloat16"] for way in facts)
        return float(2 * products / took[f"{part}seconds"] / 1e9 / best)

    def each(one: Json, way: str) -> float:
        return float(one[way]["seconds"] / one[way]["rows"])

    def ratio(one: Json, way: str, ours: str) -> float:
        return each(one, way) / each(one, ours)

    return {
        **{
            f"{ours}_over_{_IN_FULL.get(way, way)}": median(
                lambda one, way=way, ours=ours: ratio(one, way, ours)  # type: ignore[misc]
            )
            for ours in OURS
            if ours in facts
            for way in others
        },
        "pairs_per_second": {
            way: median(lambda one, way=way: 1 / each(one, way))  # type: ignore[misc]
            for way in facts
        },
        "share_of_bf16_matmul_rate": median(share),
        "share_of_bf16_matmul_rate_in_prefill": median(lambda one: share(one, "prefill_")),
        "the_same_of_the_layers_alone": median(lambda one: share(one, "prefill_", beside=False)),
        "tokens_fed_over_prompt_tokens": median(lambda one: one["jlm"]["fed"] / sum(sizes)),
        "conditions": {
            "input": options.input.name,
            "rows": len(sizes),
            "rows_of_the_others": max((rounds[0][way]["rows"] for way in others), default=0),
            "reason_tokens_at_most": setting.reason,
            "prompt_tokens_median": int(statistics.median(sizes)),
            "model": Path(setting.run.files.name).name,
            "trained": setting.trained,
            "device": machine(setting.run.compute.device),
            "dtypes": {way: facts[way]["dtype"] for way in facts},
            "continuous_manager": "kept from round to round",
            "torch": torch.__version__,
            "kernels": setting.run.compute.settings().get("kernels"),
        },
        "rounds": rounds,
    }


_IN_FULL = {"continuous": "continuous_batching"}


def tell(result: Json, output: Path | None) -> None:
    """To standard output, and to a file where one is named."""
    packed = dump_indented(result)
    print(packed.decode(), end="")
    if output is not None:
        output.write_bytes(packed)


def machine(device: str) -> str:
    """What was measured on: the GPU's name, or what the processor can do."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    best = torch.backends.cpu.get_cpu_capability()
    extras = {
        "AMX": torch.cpu._is_amx_tile_supported(),
        "BF16": torch.cpu._is_avx512_bf16_supported(),
    }
    more = "".join(f" {name}" for name, there in extras.items() if there)
    return f"{platform.machine()} {best}{more}, {os.cpu_count()} cores"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--input", type=Path, default=root / "samples" / "pairs.jsonl")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reason", type=int, default=0, metavar="N", help="tokens at most")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    usual, ways = ("jlm", *OTHERS), (*OURS, *OTHERS)
    parser.add_argument("--ways", nargs="+", choices=ways, default=usual, help="jlm among them")
    parser.add_argument("--every", type=int, default=EVERY, help="of the rows, on a GPU")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    parser.add_argument("--way", choices=ways, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "jlm" not in options.ways:
        parser.error("--ways: jlm must be among them")
    return options


if __name__ == "__main__":
    main()
