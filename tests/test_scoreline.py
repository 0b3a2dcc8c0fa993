"""The walk over score lines, against enumerating them all."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jlm_cli.engine import reading_lines
from jlm_cli.errors import ModelError, RowError
from jlm_cli.fake import FakeEngine
from jlm_cli.records import read_score_line
from jlm_cli.scoreline import Floats, Grammar, LineDistribution, LineTokens
from jlm_cli.tasks import finish
from jlm_cli.walk import DraftToken, Walk

BYTES = LineTokens.build(Grammar(), "Response:", lambda text: list(text.encode()), [10, 256])
Model = Callable[[bytes], Floats]


def random_model(seed: int, peaked: float) -> Model:
    """Log-probabilities of the columns after a path, drawn from the path; the rest is lost mass."""

    def behind(path: bytes) -> Floats:
        digest = hashlib.blake2b(path, key=str(seed).encode(), digest_size=8).digest()
        draw = np.random.default_rng(int.from_bytes(digest, "big"))
        logits = draw.normal(0, peaked, len(BYTES.columns) + 3)
        known: Floats = (logits - np.logaddexp.reduce(logits))[: len(BYTES.columns)]
        return known

    return behind


def walk_with(
    model: Model, exact: bool = False, tokens: LineTokens = BYTES
) -> tuple[LineDistribution, int]:
    walk, fed = Walk(tokens, exact), bytearray()
    draft, behind_prompt = walk.first_draft(), [model(b"")]
    while draft or behind_prompt:
        fed += bytes(token.token for token in draft)
        walk.read(np.array([*behind_prompt, *(model(path_of(token, fed)) for token in draft)]))
        draft, behind_prompt = walk.draft(), []
    return walk.result(), len(fed)


def path_of(token: DraftToken, fed: bytearray) -> bytes:
    path = bytes([*(fed[slot] for slot in token.path), token.token])
    assert len(path) == token.depth
    return path


def brute_force(model: Model) -> dict[tuple[float, float], float]:
    """Log-probability of each of the 361 lines, its end included, token by token."""
    found = {}
    for values in itertools.product(Grammar().values, repeat=2):
        text = " ".join(values).encode()
        log_p = sum(
            float(model(text[:place])[BYTES.column[text[place]]]) for place in range(len(text))
        )
        ends = [float(model(text)[BYTES.column[end]]) for end in BYTES.ends]
        found[float(values[0]), float(values[1])] = log_p + float(np.logaddexp.reduce(ends))
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), peaked=st.sampled_from([0.5, 2.0, 5.0]))
def test_exact_walk_equals_brute_force(seed: int, peaked: float) -> None:
    model = random_model(seed, peaked)
    wanted = brute_force(model)
    result, _ = walk_with(model, exact=True)
    total = float(np.logaddexp.reduce(list(wanted.values())))
    assert result.mass == pytest.approx(math.exp(total), rel=1e-9)
    assert len(result.lines) == len(wanted) == 361
    for line, p in zip(result.lines, result.p, strict=True):
        assert p == pytest.approx(math.exp(wanted[line[0], line[1]] - total), abs=1e-12)
    first = sum(math.exp(log_p - total) for (a, b), log_p in wanted.items() if a > b)
    assert result.outcome()[0] == pytest.approx(first, abs=1e-9)
    assert sum(result.outcome()) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), peaked=st.sampled_from([0.5, 2.0, 5.0]))
def test_pruned_walk_keeps_the_greedy_line(seed: int, peaked: float) -> None:
    model = random_model(seed, peaked)
    result, fed = walk_with(model)
    exact, fed_exactly = walk_with(model, exact=True)
    assert result.text == exact.text
    assert fed <= fed_exactly
    assert result.mass <= 1 + 1e-12  # what is not read to its end is estimated


def confident(line: str, rest: float) -> Model:
    """Writes `line` but for a share `rest`, spread evenly."""

    def behind(path: bytes) -> Floats:
        text = (line + "\n").encode()
        p = np.full(len(BYTES.columns), rest / len(BYTES.columns))
        if text.startswith(path) and len(path) < len(text):
            p[BYTES.column[text[len(path)]]] += 1 - rest
        known: Floats = np.log(p)
        return known

    return behind


@pytest.mark.parametrize("line", ["8 5", "10 10", "1 10", "10 1", "1.5 9.5", "7 1", "1 1.5"])
def test_confident_model_costs_few_tokens(line: str) -> None:
    result, fed = walk_with(confident(line, 1e-3))
    assert result.text == line
    assert fed <= 30
    exact, _ = walk_with(confident(line, 1e-3), exact=True)
    assert result.outcome() == pytest.approx(exact.outcome(), abs=2e-3)


def undecided(seed: int) -> Model:
    """Spreads its scores over many lines, ends a line at once, and seldom writes a half."""
    draw = np.random.default_rng(seed)
    centre, width, ends = draw.uniform(2, 9), draw.uniform(1, 4), draw.uniform(0.97, 0.999)

    def behind(path: bytes) -> Floats:
        score, before = path.rpartition(b" ")[2], path.count(b" ")
        p = dict.fromkeys(BYTES.columns, 1e-6)
        if not score:
            near = {b"%d" % n: math.exp(-(((n - centre) / width) ** 2)) for n in range(1, 11)}
            for text, weight in near.items():
                p[text[0]] += weight / sum(near.values())
        elif score == b"1":
            p[ord("0")] += 0.3
            p[10 if before else ord(" ")] += 0.7
        elif score.endswith(b"."):
            p[ord("5")] += 1
        else:
            p[ord(".")] += (1 - ends) / 2 if b"." not in score else 0
            p[10 if before else ord(" ")] += ends
        known: Floats = np.log([p[column] for column in BYTES.columns])
        known -= max(0.0, float(np.logaddexp.reduce(known)))
        return known

    return behind


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lines_left_unread_hardly_change_an_undecided_judges_distribution(seed: int) -> None:
    result, fed = walk_with(undecided(seed))
    exact, fed_exactly = walk_with(undecided(seed), exact=True)
    assert result.text == exact.text
    assert fed < fed_exactly / 2
    assert result.outcome() == pytest.approx(exact.outcome(), abs=1e-3)
    assert result.expected() == pytest.approx(exact.expected(), abs=1e-2)
    assert result.mass == pytest.approx(exact.mass, abs=1e-2)


def bytes_of(grammar: Grammar) -> LineTokens:
    return LineTokens.build(grammar, "Response:", lambda text: list(text.encode()), [10, 256])


def independent(tokens: LineTokens, scores: dict[str, float]) -> Model:
    """Draws each score by itself, whatever stands before it."""

    def behind(path: bytes) -> Floats:
        before, _, begun = path.decode().rpartition(" ")
        ends = "\n" if len(before.split()) == tokens.grammar.count - 1 else " "
        p = dict.fromkeys(tokens.columns, 1e-9)
        for score, share in scores.items():
            if score.startswith(begun):
                p[ord((score + ends)[len(begun)])] += share
        known: Floats = np.log([p[column] / sum(p.values()) for column in tokens.columns])
        return known

    return behind


@pytest.mark.parametrize("n", [3, 4, 5, 8])
@pytest.mark.parametrize(
    "scores",
    [
        {"8": 0.4, "7": 0.3, "6": 0.2, "5": 0.1},
        {"10": 0.4, "9": 0.3, "8": 0.2, "1": 0.1},
        {"8": 0.7, "7": 0.3},
    ],
    ids=str,
)
def test_an_unsure_judges_lists_keep_their_mass_and_their_means(
    n: int, scores: dict[str, float]
) -> None:
    tokens = bytes_of(Grammar(n))
    result, _ = walk_with(independent(tokens, scores), tokens=tokens)
    mean = sum(float(score) * share for score, share in scores.items())
    assert result.mass == pytest.approx(1, abs=0.03)
    assert result.expected() == pytest.approx([mean] * n, abs=0.1)


def test_scores_of_two_values_are_not_drafted_to_the_end_of_the_line() -> None:
    tokens = bytes_of(Grammar(12, values=("0", "1")))
    assert len(Walk(tokens).first_draft()) <= 8
    _, fed = walk_with(independent(tokens, {"0": 0.5, "1": 0.5}), tokens=tokens)
    assert fed < 2000


def test_nan_fails_one_row_and_leaves_its_neighbours() -> None:
    class Broken(FakeEngine):
        def begin(self, prompts, drafts, columns):  # type: ignore[no-untyped-def]
            batch = super().begin(prompts, drafts, columns)
            batch.known()[1][:] = np.nan
            return batch

    prompts = [b"one", b"two", b"three"]
    results = finish(reading_lines(Broken(), prompts, [BYTES] * 3))
    whole = finish(reading_lines(FakeEngine(), prompts, [BYTES] * 3))
    failed = results[1]
    assert isinstance(failed, RowError) and failed.code == "nan"
    for row in (0, 2):
        good, wanted = results[row], whole[row]
        assert isinstance(good, LineDistribution) and isinstance(wanted, LineDistribution)
        assert good.text == wanted.text and good.mass == wanted.mass


def test_tokenizer_that_merges_scores_with_the_prompt_is_refused() -> None:
    def merging(text: str) -> list[int]:
        return [ord(char) for char in text.replace(":1", "\u2460")]

    with pytest.raises(ModelError, match="merges"):
        LineTokens.build(Grammar(), "Response:", merging, [10])


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 5\nBecause", (8.0, 5.0)),
        ("8, 5", (8.0, 5.0)),
        (" 7.5 10 \n", (7.5, 10.0)),
        ("7 10", (7.0, 10.0)),
        ("0 3", (0.0, 3.0)),
        ("8", (8.0,)),
        ("11 3", None),
        ("nan 5", None),
        ("-1 5", None),
        ("8 5 because", None),
        ("Assistant 1 is better\n8 5", None),
        ("", None),
    ],
)
def test_teacher_lines(text: str, scores: tuple[float, ...] | None) -> None:
    assert read_score_line(text) == scores
