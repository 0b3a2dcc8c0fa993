"""What is left unread of the score lines, and what that changes.

    python benchmarks/exactness.py --input pairs.jsonl --rows 48

The same prompts in float32 twice: as a run reads them, and with every line read to its end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput import machine, tell

from jlm_cli import loading, preflight
from jlm_cli.config import Config
from jlm_cli.engine import Engine, following
from jlm_cli.report import Report
from jlm_cli.scoreline import LineDistribution, LineTokens
from jlm_cli.tasks import finish
from jlm_cli.walk import Walk

Json = dict[str, Any]
BATCH = 8


def main() -> None:
    options = _options()
    config = Config(
        inputs=(str(options.input),),
        output=None,
        model=options.model,
        limit=options.rows,
        dtype="float32",
    )
    run = preflight.open_run(config, Report(quiet=True))
    encoded = run.encoder.encode([run.rows.sample(row) for row in range(len(run.rows))])
    prompts = [one[0] for one in encoded if isinstance(one, list)]
    tokens = [run.lines.of(prompt.view.template, len(prompt.view.shown)) for prompt in prompts]
    engine = loading.load_engine(run.files, run.lines.vocabulary, run.compute)
    ids = [prompt.ids for prompt in prompts]
    read, drafted = distributions(engine, ids, tokens, exact=False)
    exact, drafted_exactly = distributions(engine, ids, tokens, exact=True)
    off = [
        float(np.abs(np.subtract(one.outcome(), other.outcome())).max())
        for one, other in zip(read, exact, strict=True)
    ]
    means = [
        float(np.abs(np.subtract(one.expected() or (), other.expected() or ())).max(initial=0))
        for one, other in zip(read, exact, strict=True)
    ]
    result = {
        "drafted_tokens_a_row": round(drafted / len(ids), 1),
        "drafted_tokens_a_row_for_all_lines": round(drafted_exactly / len(ids), 1),
        "p_off_by": {"mean": float(f"{np.mean(off):.1e}"), "most": float(f"{max(off):.1e}")},
        "expected_off_by": {"mean": round(float(np.mean(means)), 5), "most": round(max(means), 5)},
        "lines_that_differ": sum(a.text != b.text for a, b in zip(read, exact, strict=True)),
        "conditions": {
            "input": options.input.name,
            "rows": len(ids),
            "model": run.files.name,
            "device": machine(run.compute.device),
            "torch": torch.__version__,
        },
    }
    tell(result, options.output)


def distributions(
    engine: Engine, prompts: Sequence[Sequence[int]], tokens: Sequence[LineTokens], exact: bool
) -> tuple[list[LineDistribution], int]:
    """Of all prompts, and the tokens drafted for them."""
    walks = [Walk(line, exact) for line in tokens]
    for start in range(0, len(walks), BATCH):
        some = slice(start, start + BATCH)
        finish(following(engine, prompts[some], walks[some]))
    return [walk.result() for walk in walks], sum(walk.drafted for walk in walks)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--input", type=Path, default=root / "samples" / "pairs.jsonl")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
