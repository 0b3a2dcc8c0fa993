"""The README's tables of figures, written anew from the files under benchmarks/results/.

    python benchmarks/tables.py            fills them in
    python benchmarks/tables.py --check    exit code 1 where they are not what the files say

A table stands between `<!-- table NAME -->` and `<!-- end -->`; a new one is a function and a line
in TABLES.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_TABLE = re.compile(r"(<!-- table ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_WAYS = {
    "official": "JudgeLM's released way: one prompt at a time, decode until a newline",
    "padded_generate": "padded batches of 8, `generate`",
    "continuous": "transformers' continuous batching, `generate_batch`",
}


def result(name: str) -> Json:
    found: Json = orjson.loads((RESULTS / f"{name}.json").read_bytes())
    return found


def rows(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


MACHINES = ("cpu", "cpu-2")  # of results; the first one has AMX


def throughput(name: str) -> str:
    """On both machines."""
    found = [result(f"{name}-{machine}") for machine in MACHINES]
    dtypes = found[0]["conditions"]["dtypes"]
    body = []
    for way, text in _WAYS.items():
        body.append([text, dtypes[way]])
        for one in found:
            timed_alike = way != "continuous" or "continuous_manager" in one["conditions"]
            times = one[_RATIOS[way]] if timed_alike else None
            speed = one["pairs_per_second"][way] if timed_alike else None
            body[-1] += [_or_none(speed, ""), _or_none(times, " ×")]
    speeds = [text for one in found for text in (f"{one['pairs_per_second']['jlm']:.2f}", "")]
    body.append(["jlm", dtypes["jlm"], *speeds])
    times = "jlm is faster by"
    return rows(("way", "format", "pairs/s", times, "second machine", times), body)


def windows() -> str:
    """A shape whose layers mostly see a window."""
    found = result("throughput-gemma-cpu")
    body = [
        [text, found["pairs_per_second"][way], f"{found[_RATIOS[way]]:.2f} ×"]
        for way, text in _WAYS.items()
    ]
    body.append(["jlm", found["pairs_per_second"]["jlm"], ""])
    return rows(("way", "pairs/s", "jlm is faster by"), body)


def on_gpu() -> str:
    """A 7B shape: each way beside jlm in the same run."""
    found = result("throughput-7b-h200")
    speeds = found["pairs_per_second"]
    body: list[Sequence[object]] = []
    for way, text in _WAYS.items():
        ratio = _RATIOS[way]
        times = (found[ratio], found[ratio.replace("jlm", "jlm_fp8")])
        body.append(
            (
                text.replace("of 8", "of 32"),
                f"{speeds[way]:.1f}",
                *(f"{one:.2f} ×" for one in times),
            )
        )
    body.append(("jlm", f"{speeds['jlm']:.1f}", "", ""))
    body.append(("jlm with `--quantize fp8`", f"{speeds['jlm_fp8']:.1f}", "", ""))
    return rows(("7B on an H200", "pairs/s", "jlm is faster by", "jlm in fp8 by"), body)


_PAPERS = {  # Table 3: minutes for 5,000 pairs on eight A100s, weights loaded
    ("7b", 0): 3,
    ("7b", 180): 50,
    ("13b", 0): 5,
    ("33b", 0): 15,
}


def sizes() -> str:
    """jlm in bfloat16 with models of all sizes, beside the paper's Table 3."""
    body: list[Sequence[object]] = []
    for name in ("7b", "reason-7b", "13b", "33b"):
        found = result(f"throughput-{name}-h200")
        about, speed = found["conditions"], found["pairs_per_second"]["jlm"]
        most = about["reason_tokens_at_most"]
        written = f", reasons of {most} tokens" if most else ""
        body.append(
            (
                about["model"].upper() + written,
                f"{about['rows']}, of {about['prompt_tokens_median']} tokens",
                f"{speed:.1f}",
                f"{5000 / speed / 60:.1f} min",
                f"{_PAPERS[about['model'], most]} min",
                f"{found['share_of_bf16_matmul_rate']:.2f}",
                f"{found['share_of_bf16_matmul_rate_in_prefill']:.2f}",
            )
        )
    shares = "share of the bfloat16 rate", "in prefills"
    times = "5,000 such", "on eight A100s, Table 3"
    return rows(("one H200", "pairs", "pairs/s", *times, *shares), body)


def pieces() -> str:
    found = result("pieces-7b-h200")["pieces_ms"]
    return rows(("piece of a layer", "ms"), [(name, f"{ms:.2f}") for name, ms in found.items()])


_RATIOS = {
    "official": "jlm_over_official",
    "padded_generate": "jlm_over_padded_generate",
    "continuous": "jlm_over_continuous_batching",
}


def _or_none(figure: float | None, unit: str) -> str:
    return "" if figure is None else f"{figure:.2f}{unit}"


_SHARES = {
    "share of the bfloat16 matmul rate in the prefills: layers, attention, vocabulary": (
        "share_of_bf16_matmul_rate_in_prefill"
    ),
    "the same, by the products of the layers alone": "the_same_of_the_layers_alone",
    "share in the whole run, drafts of score lines included": "share_of_bf16_matmul_rate",
    "tokens fed for each of the prompts', which share their beginnings": (
        "tokens_fed_over_prompt_tokens"
    ),
}


def share() -> str:
    found = [result(f"throughput-{machine}") for machine in MACHINES]
    faster = [
        statistics.median(
            rate["bfloat16"] / rate["float32"]
            for rate in (one["jlm"]["gflops"] for one in every["rounds"])
        )
        for every in found
    ]
    body = [("rate of bfloat16 products beside float32's", *(f"{rate:.1f} ×" for rate in faster))]
    for text, name in _SHARES.items():
        body.append((text, *(f"{one[name]:.2f}" for one in found)))
    return rows(("the machine, and what `jlm` makes of it", "measured", "second machine"), body)


def quality() -> str:
    found = result("quality-tiny")
    body = []
    for name, label in (("pandalm", "PandaLM test"), ("reviews", "held-out GPT-4 reviews")):
        one = found[name]
        figures = {
            "accuracy, single order": one["objective"]["agreement"],
            "accuracy, both orders, conflict = tie": one["combined"]["accuracy"],
            "macro F1, single order": one["objective"]["f1"],
            "swap consistency": one["reliability"]["consistency"],
        }
        baselines = {
            f"baseline: {kind.replace('_', ' ')}": figure["agreement"]
            for kind, figure in one["baselines"].items()
        }
        for what, figure in (figures | baselines).items():
            low, high = figure["ci95"]
            body.append((label, what, f"{figure['value']:.3f}", f"{low:.3f} – {high:.3f}"))
    return rows(("set", "figure", "value", "95 %"), body)


def checks() -> str:
    found = result("checks-tiny")
    grades, ranks, free = found["grades_fall"], found["gibberish_last"], found["valid_free_lines"]
    body = [
        ("grade falls when the answer is spoiled, expected score", of(grades, "expected")),
        ("the same, score as written", of(grades, "score")),
        ("gibberish last among four, expected scores", of(ranks, "expected")),
        ("the same, ranking as written", of(ranks, "ranking")),
        ("free greedy decoding writes a valid score line", of(free, "valid")),
    ]
    return rows(("check, on validation questions", "holds in"), body)


def of(found: Json, name: str) -> str:
    return f"{found[name]} of {found['of']}"


def probe() -> str:
    found = result("probe-tiny")
    rates = {name: found[name] for name in ("control", "position")} | found["attacks"]
    body = [
        (name.replace("_", " "), f"{one['value']:.2f}", "{:.2f} – {:.2f}".format(*one["ci95"]))
        for name, one in (rates | {"**all attacks**": found["attack_success"]}).items()
    ]
    return rows(("attack", "prefers the poor answer", "95 %"), body)


def costs() -> str:
    found, workers = result("costs-stages"), result("costs-workers")
    speed, seconds = found["rows_a_second"], result("costs-startup")["seconds"]
    figures = result("costs-metrics")
    many = f"{found['rows']:,} rows"
    body = [
        ("`jlm --version`, `jlm judge --help`", f"{seconds['version']} s, {seconds['help']} s"),
        ("from the command to the first verdict of `tiny`", f"{seconds['first_verdict']} s"),
        (
            "two workers of one thread against one, loading taken off",
            f"{workers['two_over_one_without_loading']:.2f} ×",
        ),
        ("survey: parse, render, tokenise", f"{speed['survey']:,} rows/s"),
        (f"plan, journal and merge of {many}", f"{speed['plan_journal_and_merge']:,} rows/s"),
        (f"scan of {many} on resuming", f"{found['resume_scan_seconds']:.1f} s"),
        (
            f"`jlm metrics` of {figures['rows']:,} compact records with gold",
            f"{figures['seconds']:.0f} s, {figures['peak_mb'] / 1e3:.1f} GB",
        ),
    ]
    return rows(("what", "measured"), body)


def lengths() -> str:
    found = result("costs-lengths")
    kinds = (
        ("by_words_of_an_answer", "answers of {} words each"),
        ("by_batch_tokens", "batches of {} tokens"),
        ("by_rows", "{} rows"),
    )
    body = [
        (label.format(name), f"{one['seconds_a_pair']:.3f}", f"{one['peak_mb'] / 1e3:.1f}")
        for kind, label in kinds
        for name, one in found[kind].items()
    ]
    return rows(("pairs of 80 words an answer, but", "seconds a pair", "GB at most"), body)


def simulated() -> str:
    ways = (
        ("all alike: idle", "all_alike", "idle"),
        ("stragglers: idle", "stragglers", "idle"),
        ("one lost: idle", "one_lost", "idle"),
        ("one lost: judged in vain", "one_lost", "lost"),
    )
    body = [
        (
            f"{int(name.removesuffix('_rows')):,} rows, {label}",
            *(f"{100 * runs[f'{n}_workers'][kind][share]:.1f} %" for n in (8, 64)),
        )
        for name, runs in result("simulate")["simulated"].items()
        for label, kind, share in ways
    ]
    return rows(("share of the workers' time", "8 workers", "64 workers"), body)


def exactness() -> str:
    found = result("exactness-tiny")
    body = [
        ("tokens drafted for a row", found["drafted_tokens_a_row"]),
        ("the same, for all lines", found["drafted_tokens_a_row_for_all_lines"]),
    ]
    for name, label in (("p_off_by", "probabilities"), ("expected_off_by", "expected scores")):
        off = found[name]
        body.append((f"{label} are off by, mean and most", f"{off['mean']:.5f}, {off['most']:.5f}"))
    body.append(("greedy lines that differ", f"{found['lines_that_differ']} of {_rows(found)}"))
    return rows(("what", "measured"), body)


def formats() -> str:
    found = result("formats-tiny")
    n, clear, each = found["judgments"], found["clear"], found["formats"].values()
    body = [
        ("verdicts that are the same", *(f"{one['same_verdict']} of {n}" for one in each)),
        ("of the clear ones", *(f"{one['same_verdict_of_clear']} of {clear}" for one in each)),
        ("score lines that are the same", *(f"{one['same_line']} of {n}" for one in each)),
        ("probabilities are off by, mean", *(f"{one['p_off_by']['mean']:.4f}" for one in each)),
        ("and most", *(f"{one['p_off_by']['most']:.4f}" for one in each)),
    ]
    return rows(("beside float32", *(f"`{name}`" for name in found["formats"])), body)


def _rows(found: Json) -> int:
    return int(found["conditions"]["rows"])


TABLES: dict[str, Callable[[], str]] = {
    "throughput": partial(throughput, "throughput"),
    "reasons": partial(throughput, "throughput-reason"),
    "windows": windows,
    "share": share,
    "gpu": on_gpu,
    "gpu-sizes": sizes,
    "pieces": pieces,
    "quality": quality,
    "checks": checks,
    "probe": probe,
    "costs": costs,
    "lengths": lengths,
    "simulated": simulated,
    "exactness": exactness,
    "formats": formats,
}


def filled(text: str) -> str:
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> int:
    status = 0
    for path in (ROOT / "README.md", ROOT / "jlm_cli" / "weights" / "tiny" / "README.md"):
        before = path.read_text("utf-8")
        after = filled(before)
        if "--check" not in sys.argv:
            path.write_text(after, "utf-8")
        elif after != before:
            print(f"{path}: its tables are not what benchmarks/results/ says", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
