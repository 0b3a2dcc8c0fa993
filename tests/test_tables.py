"""The figures in the README and in the model card are those of benchmarks/results/."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT


def test_tables_are_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
