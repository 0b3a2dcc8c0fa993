"""The code is typed and tidy throughout, by the settings in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_nothing_is_left_to_say(command: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", *command.split(), "--cache-dir", str(tmp_path)]
    folders = ["jlm_cli", "tests", "benchmarks", "recipes"]
    done = subprocess.run([*words, *folders], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
