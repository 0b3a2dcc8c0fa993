"""What judging in fewer bits changes, beside float32.

    python benchmarks/formats.py --input pandalm_test.jsonl --rows 120

The same rows in both orders and all formats, by `jlm judge`; a judgment is one order of a row. It
is clear where float32 gives one verdict four fifths or more.
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
WHOLE = ["--dtype", "float32"]
FORMATS = {
    "bfloat16": ["--dtype", "bfloat16"],
    "fp8": ["--quantize", "fp8"],
    "8bit": [*WHOLE, "--quantize", "8bit"],
    "4bit": [*WHOLE, "--quantize", "4bit"],
}
CLEAR = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--input", type=Path, default=root / "samples" / "pairs.jsonl")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--template", default="judgelm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jlm-formats-") as scratch:
        whole = judgments(options, WHOLE, Path(scratch) / "whole.jsonl")
        found = {
            name: beside(whole, judgments(options, FORMATS[name], Path(scratch) / f"{name}.jsonl"))
            for name in options.formats
        }
    result = {
        "judgments": len(whole),
        "clear": sum(max(one["p"].values()) >= CLEAR for one in whole),
        "formats": found,
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


def beside(whole: list[Json], other: list[Json]) -> Json:
    """How many verdicts and lines are the same, and how far off probabilities are."""
    pairs = list(zip(whole, other, strict=True))
    off = [max(abs(a["p"][v] - b["p"][v]) for v in a["p"]) for a, b in pairs]
    return {
        "same_verdict": sum(a["verdict"] == b["verdict"] for a, b in pairs),
        "same_verdict_of_clear": sum(
            a["verdict"] == b["verdict"] for a, b in pairs if max(a["p"].values()) >= CLEAR
        ),
        "same_line": sum(a["text"] == b["text"] for a, b in pairs),
        "p_off_by": {"mean": round(float(np.mean(off)), 5), "most": round(max(off), 5)},
    }


def judgments(options: argparse.Namespace, how: list[str], output: Path) -> list[Json]:
    """Both orders of each row."""
    command = [sys.executable, "-m", "jlm_cli", "judge", str(options.input), "--swap", "-q"]
    command += ["-m", options.model, "--template", options.template, "--no-reference"]
    command += ["--device", options.device, "--limit", str(options.rows), *how]
    subprocess.run([*command, "-o", str(output)], check=True)
    records = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    return [one for record in records for one in (record, record["swapped"])]


if __name__ == "__main__":
    main()
