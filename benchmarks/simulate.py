"""How evenly work is shared: real prompt lengths, measured batch costs, simulated workers.

    python benchmarks/simulate.py --input pairs.jsonl --rows 96

Judges real batches on one thread and fits what a batch costs to its tokens and its rows. Then 1, 2,
8 and 64 workers take the batches of a planned run from one counter, as real ones do: all alike;
with stragglers (one worker in eight takes twice as long); with a worker that is lost half-way,
which ends the run, whose batches under way are judged again when it is resumed. `idle` is the
share of the workers' time in which they have nothing to do, `lost` the share spent on what is
judged again. The simulation of one worker, and of two, is set beside real runs of the same rows.
"""

from __future__ import annotations

import argparse
import heapq
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from throughput import machine, tell

from jlm_cli import loading, preflight, runner
from jlm_cli.batching import Plan, make_plan
from jlm_cli.config import Config
from jlm_cli.engine import Judge
from jlm_cli.report import Report
from jlm_cli.survey import take_survey

Json = dict[str, Any]
Floats = NDArray[np.float64]
STRAGGLER, ONE_IN = 2.0, 8


@dataclass(frozen=True)
class Costs:
    """Seconds of a batch: `fixed`, and more by token and by row."""

    fixed: float
    token: float
    row: float

    def of(self, plan: Plan, tokens: NDArray[np.int64]) -> Floats:
        batches = [np.asarray(batch) for batch in plan]
        return np.array(
            [self.fixed + self.token * tokens[b].sum() + self.row * len(b) for b in batches]
        )


@dataclass(frozen=True)
class Outcome:
    """`seconds` until the last worker is done; of all workers' time, the share that is left idle,
    and the share that was lost to batches begun in vain."""

    seconds: float
    idle: float
    lost: float = 0.0


def share(costs: Sequence[float], speeds: Sequence[float]) -> tuple[Floats, Floats]:
    """Workers take the next batch when they are free: when each batch ends, each worker is done."""
    free = [(0.0, worker) for worker in range(len(speeds))]
    ends, done = np.zeros(len(costs)), np.zeros(len(speeds))
    for place, cost in enumerate(costs):
        at, worker = heapq.heappop(free)
        ends[place] = done[worker] = at + cost * speeds[worker]
        heapq.heappush(free, (ends[place], worker))
    return ends, done


def outcome(done: Floats) -> Outcome:
    longest = float(done.max())
    return Outcome(longest, 1 - float(done.sum()) / (longest * len(done)))


def run_of(costs: Sequence[float], workers: int, straggling: bool = False) -> Outcome:
    slow = [straggling and n % ONE_IN == ONE_IN - 1 for n in range(workers)]
    return outcome(share(costs, [STRAGGLER if one else 1.0 for one in slow])[1])


def lost_half_way(costs: Sequence[float], workers: int) -> Outcome:
    """The run ends when a worker is lost; what was under way is judged again on resuming."""
    each = np.asarray(costs)
    ends, done = share(costs, [1.0] * workers)
    half = float(done.max()) / 2
    begun = (half - (ends - each)[ends > half]).clip(0)
    resumed = share(each[ends > half].tolist(), [1.0] * workers)[1]
    seconds = half + float(resumed.max())
    lost = float(begun.sum()) / (seconds * workers)
    return Outcome(seconds, 1 - lost - sum(costs) / (seconds * workers), lost)


def measured(options: argparse.Namespace) -> tuple[Costs, NDArray[np.int64], int, float]:
    """Costs fitted to real batches of two sizes; the prompts' lengths, the tokens of a batch, and
    what the batches of one run really took together, in seconds."""
    config = Config(
        inputs=(str(options.input),), output=None, model=options.model, limit=options.rows
    )
    run = preflight.open_run(config, Report(quiet=True))
    survey = take_survey(run.rows, run.encoder, lambda _: None)
    tokens = np.asarray(survey.tokens, np.int64)
    engine = loading.load_engine(run.files, run.lines.vocabulary, run.compute)
    judge = Judge(engine, run.lines, reason=False, new_tokens=0)
    full = preflight.plan_of(run, survey)
    torch.set_num_threads(1)  # as each of the workers has
    list(runner.judged_batches(run, [full.batch(0)], judge))  # warms up
    facts, seconds = [], []
    for budget in (run.compute.batch_tokens, run.compute.batch_tokens // 4):
        for batch in make_plan(survey.rows, survey.tokens, survey.groups, budget):
            start = time.perf_counter()
            list(runner.judged_batches(run, [batch], judge))
            seconds.append(time.perf_counter() - start)
            facts.append((1, tokens[batch].sum(), len(batch)))
    fitted, *_ = np.linalg.lstsq(np.array(facts, float), np.array(seconds), rcond=None)
    return (
        Costs(*map(float, fitted)),
        tokens,
        run.compute.batch_tokens,
        sum(seconds[: len(full)]),
    )


def real_seconds(options: argparse.Namespace, workers: int, folder: Path) -> float:
    """A real run less what a run of two rows takes, on workers of one thread each."""
    found = []
    for rows in (2, options.rows):
        command = [sys.executable, "-m", "jlm_cli", "judge", str(options.input), "-q"]
        command += ["-m", options.model, "--limit", str(rows), "--workers", str(workers)]
        command += ["-o", str(folder / "out.jsonl"), "--overwrite"]
        start = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found.append(time.perf_counter() - start)
    return found[1] - found[0]


def simulated(costs: Costs, tokens: NDArray[np.int64], rows: int, budget: int) -> Json:
    """Runs of so many rows, whose lengths are drawn from the real ones."""
    drawn = np.random.default_rng(0).choice(tokens, rows)
    plan = make_plan(range(rows), drawn.tolist(), range(rows), budget)
    each = costs.of(plan, drawn).tolist()
    found: Json = {"batches": len(plan)}
    for workers in (8, 64):
        ways = {
            "all_alike": run_of(each, workers),
            "stragglers": run_of(each, workers, straggling=True),
            "one_lost": lost_half_way(each, workers),
        }
        found[f"{workers}_workers"] = {
            name: {key: round(value, 4) for key, value in asdict(one).items()}
            for name, one in ways.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--input", type=Path, default=root / "samples" / "pairs.jsonl")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--many", type=int, nargs="*", default=[5_000, 100_000])
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    costs, tokens, batch_tokens, one = measured(options)
    plan = make_plan(range(len(tokens)), tokens.tolist(), range(len(tokens)), batch_tokens)
    each = costs.of(plan, tokens).tolist()
    with tempfile.TemporaryDirectory(prefix="jlm-simulate-") as scratch:
        two = real_seconds(options, 2, Path(scratch))
    result = {
        "seconds_of_a_batch": {"fixed": costs.fixed, "token": costs.token, "row": costs.row},
        "checked": {
            "1_worker": {"real": round(one, 2), "simulated": round(run_of(each, 1).seconds, 2)},
            "2_workers": {"real": round(two, 2), "simulated": round(run_of(each, 2).seconds, 2)},
        },
        "simulated": {f"{n}_rows": simulated(costs, tokens, n, batch_tokens) for n in options.many},
        "conditions": {"machine": machine("cpu"), "model": options.model, "rows": options.rows},
    }
    tell(result, options.output)


if __name__ == "__main__":
    main()
