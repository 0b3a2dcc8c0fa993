"""The probe's set, its rates, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Jlm

from jlm_cli.config import Config
from jlm_cli.errors import InputError, UsageError
from jlm_cli.injection import find
from jlm_cli.intervals import wilson
from jlm_cli.probe import AttackTally, rate, rows, run
from jlm_cli.report import Report

ATTACKS = {"null-model", "master-key", "forged-score", "forged-structure", "plea", "verbosity"}
ATTACKS |= {"flattery", "authority", "formatting"}


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def test_the_set_is_whole() -> None:
    given = list(rows())
    assert {row["category"] for row in given} == ATTACKS | {"control"}
    assert all(row["answers"][0] != row["answers"][1] for row in given)
    assert not any("{answer}" in answer for row in given for answer in row["answers"])
    for row in given:  # what forges is found; the rest is not taken for it
        forged = row["category"].startswith("forged")
        assert bool(find(row["answers"][1], n_scores=2)) == forged, row


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(0, 10, 0.0, 0.277533), (5, 10, 0.236593, 0.763407), (10, 10, 0.722467, 1.0)],
)
def test_wilson(part: int, whole: int, low: float, high: float) -> None:
    """Against published values of the interval."""
    found = rate([[n < part] for n in range(whole)])
    assert found["value"] == part / whole and found["n"] == whole
    assert found["ci95"] == pytest.approx([low, high], abs=1e-5)


def test_pairs_of_one_question_count_as_fewer() -> None:
    """20 pairs of which all of a question go alike say as much as the questions do, and five of
    these little of how much they differ."""
    alike = rate([[True] * 4, [True] * 4, [False] * 4, [False] * 4, [True] * 4])
    assert alike["n"] == 20
    assert alike["ci95"] == pytest.approx(
        wilson(0.6, 20 * 4 / 19 * (1.959964 / 2.776445) ** 2), abs=1e-3
    )
    same = rate([[True] + [False] * 48] * 8)["ci95"]
    assert same == pytest.approx(wilson(1 / 49, 8), abs=1e-6)
    assert rate([[False] * 4] * 5)["ci95"] == pytest.approx(wilson(0, 5), abs=1e-6)


def test_what_counts_as_success() -> None:
    tally = AttackTally()
    for name, given, swapped in (
        ("control", "1", "1"),
        ("control", "1", "2"),
        ("plea", "tie", "tie"),
        ("plea", "1", "2"),
    ):
        tally.add(name, given + swapped, {"verdict": given, "swapped": {"verdict": swapped}})
    tally.add("plea", "refused", {"error": {"code": "injection"}})
    for _ in range(5):  # says nothing about the attack
        tally.add("plea", "long", {"error": {"code": "too-long"}})
    found = tally.summary()
    assert found["control"]["value"] == found["position"]["value"] == 0.5
    assert found["attacks"]["plea"]["value"] == found["attack_success"]["value"] == 0.333333
    assert (found["n_error"], found["n_refused"]) == (6, 1)


def test_no_rate_without_pairs() -> None:
    tally = AttackTally()
    tally.add("control", "Q", {"error": {"code": "too-long"}})
    with pytest.raises(InputError, match="too few pairs could be judged: 1 failed"):
        tally.summary()


def test_from_the_command_line(tmp_path: Path, jlm: Jlm) -> None:
    """The fake engine cannot tell answers apart, and falls for about three quarters of them."""
    done = jlm("probe", "--json", "--max-attack-success", "0.2")
    found = json.loads(done.out)
    assert done.code == 3 and not found["passed"]
    assert set(found["attacks"]) == ATTACKS
    assert 0.4 < found["attack_success"]["value"] < 0.9
    assert "all attacks" in done.err
    lenient = jlm("probe", "--json", "-q", "--max-attack-success", "1")
    assert (lenient.code, lenient.err) == (0, "")
    assert json.loads(lenient.out)["attacks"] == found["attacks"]
    assert jlm("probe", "-q", "--max-attack-success", "2").code == 2
    refused = json.loads(jlm("probe", "--json", "-q", "--on-injection", "error").out)
    assert refused["attacks"]["forged-score"]["value"] == 0 and refused["n_error"] == 96
    assert not list(tmp_path.iterdir())


def test_processes_that_a_probe_does_not_take(jlm: Jlm, monkeypatch: pytest.MonkeyPatch) -> None:
    done = jlm("probe", "-m", "fake", "--workers", "2", "--device", "cuda")
    assert done.code == 2 and "--workers is for processes on the CPU" in done.err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="a launcher's processes cannot share"):
        run(Config((), None, "fake"), None)


def test_a_share_without_an_interval_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Where one question's pairs alone could be judged."""
    tally = AttackTally()
    for kind in ("control", "forged-score"):
        tally.add(kind, "Q", {"verdict": "1", "swapped": {"verdict": "1"}})
    Report().probe(tally.summary())
    assert "– – –" in capsys.readouterr().err
