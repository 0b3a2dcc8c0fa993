"""What judging in bfloat16 changes, beside float32.

    python benchmarks/formats.py --input pandalm_test.jsonl --rows 120

The same rows in both orders and both formats, by `jlm judge`; a judgment is one order of a row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from throughput import machine, tell

Json = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--input", type=Path, default=root / "samples" / "pairs.jsonl")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--template", default="judgelm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jlm-formats-") as scratch:
        whole, half = (
            judgments(options, dtype, Path(scratch) / f"{dtype}.jsonl")
            for dtype in ("float32", "bfloat16")
        )
    off = [
        max(abs(a["p"][v] - b["p"][v]) for v in a["p"]) for a, b in zip(whole, half, strict=True)
    ]
    same = {
        name: sum(a[name] == b[name] for a, b in zip(whole, half, strict=True))
        for name in ("verdict", "text")
    }
    result = {
        "judgments": len(whole),
        "same_verdict": same["verdict"],
        "same_line": same["text"],
        "p_off_by": {"mean": round(float(np.mean(off)), 5), "most": round(max(off), 5)},
        "conditions": {
            "input": options.input.name,
            "rows": options.rows,
            "model": options.model,
            "template": options.template,
            "device": machine(options.device),
            "torch": torch.__version__,
        },
    }
    tell(result, options.output)


def judgments(options: argparse.Namespace, dtype: str, output: Path) -> list[Json]:
    """Both orders of each row."""
    command = [sys.executable, "-m", "jlm_cli", "judge", str(options.input), "--swap", "-q"]
    command += ["-m", options.model, "--template", options.template, "--no-reference"]
    command += ["--device", options.device, "--dtype", dtype, "--limit", str(options.rows)]
    subprocess.run([*command, "-o", str(output)], check=True)
    records = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    return [one for record in records for one in (record, record["swapped"])]


if __name__ == "__main__":
    main()
