"""What is learnt: a view's judgment always belongs to the answers and the prompt it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jlm_cli.errors import RowError
from jlm_cli.reading.schemas import SCHEMAS, Schema
from jlm_cli.records import Sample
from jlm_cli.training.lessons import (
    Lesson,
    Shares,
    Showing,
    Teaching,
    read_lesson,
    renumbered,
    showing_of,
    showings,
    spelled,
)

ROOT = Path(__file__).resolve().parent.parent
BY_NAME: dict[str, Schema] = {schema.name: schema for schema in SCHEMAS}

scores = st.integers(2, 20).map(lambda n: f"{n / 2:g}")


@st.composite
def teachings(draw: st.DrawFn, n: int, mark: str) -> Teaching:
    """Each answer's own word follows its number, so that a test can tell whose is whose."""
    parts = [f"Assistant {k + 1} is {mark}{k}." for k in range(n)]
    return Teaching(tuple(draw(scores) for _ in range(n)), " ".join(parts))


@st.composite
def lessons(draw: st.DrawFn, most: int = 5) -> Lesson:
    n = draw(st.integers(2, most))
    reference = draw(st.booleans())
    plain = draw(teachings(n, "p")) if not reference or draw(st.booleans()) else None
    sample = Sample(
        id=draw(st.integers()),
        line=1,
        question="Why?",
        answers=tuple(f"answer {k}" for k in range(n)),
        reference="because" if reference else None,
        models=tuple(f"model {k}" for k in range(n)),
    )
    return Lesson(sample, plain, draw(teachings(n, "r")) if reference else None)


def taught(lesson: Lesson) -> list[Teaching]:
    return [t for t in (lesson.plain, lesson.with_reference) if t is not None]


@given(lessons(most=2))
def test_swapping_twice_is_the_identity(lesson: Lesson) -> None:
    for teaching in taught(lesson):
        swapped = teaching.reordered((1, 0))
        assert swapped != teaching
        assert swapped.reordered((1, 0)) == teaching


@given(lessons(), st.randoms(use_true_random=False))
def test_any_order_and_back(lesson: Lesson, random: Any) -> None:
    order = list(range(len(lesson.sample.answers)))
    random.shuffle(order)
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    for teaching in taught(lesson):
        moved = teaching.reordered(tuple(order))
        assert moved.reordered(back) == teaching
        assert sorted(moved.scores) == sorted(teaching.scores)


@given(lessons(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_judgments_follow_their_answers_over_epochs(
    lesson: Lesson, swap: float, drop: float, seed: int
) -> None:
    """Whatever was shown before: scores, words and reference belong to what is shown now."""
    given = {answer: n for n, answer in enumerate(lesson.sample.answers)}
    for epoch in range(20):
        view = showing_of(lesson, 3, epoch, Shares(swap, drop), seed)
        sample, teaching = lesson.shown(view)
        assert (sample.reference is not None) == view.with_reference
        source = lesson.with_reference if view.with_reference else lesson.plain
        assert source is not None
        mark = "r" if view.with_reference else "p"
        for place, answer in enumerate(sample.answers):
            assert teaching.scores[place] == source.scores[given[answer]]
            assert sample.models is not None and sample.models[place] == f"model {given[answer]}"
            assert f"Assistant {place + 1} is {mark}{given[answer]}." in teaching.reason
        assert sample.gold is not None and sample.gold.scores == tuple(map(float, teaching.scores))


@given(lessons(), st.integers(0, 3))
def test_the_extremes_of_the_shares(lesson: Lesson, epoch: int) -> None:
    never = showing_of(lesson, 0, epoch, Shares(0.0, 0.0), 0)
    assert never.order == tuple(range(len(lesson.sample.answers)))
    assert never.with_reference == (lesson.with_reference is not None)
    always = showing_of(lesson, 0, epoch, Shares(1.0, 1.0), 0)
    assert len(lesson.sample.answers) > 2 or always.order == (1, 0)
    assert always.with_reference == (lesson.plain is None)


def test_shares_are_what_they_say() -> None:
    one = Teaching(("8", "5"))
    lesson = Lesson(Sample("a", 1, "q", ("x", "y"), "r"), one, one)
    shown = [showing_of(lesson, row, 0, Shares(0.25, 0.8), 0) for row in range(4000)]
    assert sum(view.order == (1, 0) for view in shown) == pytest.approx(1000, abs=120)
    assert sum(not view.with_reference for view in shown) == pytest.approx(3200, abs=120)


def test_views_depend_on_nothing_but_the_seed() -> None:
    lesson = Lesson(Sample("a", 1, "q", ("x", "y")), Teaching(("8", "5")))
    first = list(showings([lesson] * 50, [1.0] * 50, 3, Shares(), 7))
    assert first == list(showings([lesson] * 50, [1.0] * 50, 3, Shares(), 7))
    assert first != list(showings([lesson] * 50, [1.0] * 50, 4, Shares(), 7))
    assert first != list(showings([lesson] * 50, [1.0] * 50, 3, Shares(), 8))


def test_weights() -> None:
    lesson = Lesson(Sample("a", 1, "q", ("x", "y")), Teaching(("8", "5")))
    count = {
        weight: len(list(showings([lesson] * 1000, [weight] * 1000, 0, Shares(), 0)))
        for weight in (0.0, 0.3, 1.0, 2.5)
    }
    assert count[0.0] == 0 and count[1.0] == 1000
    assert count[0.3] == pytest.approx(300, abs=50)
    assert count[2.5] == pytest.approx(2500, abs=50)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Assistant 1's answer beats Assistant 2's.", "Assistant 2's answer beats Assistant 1's."),
        ("Assistants 1 and 2 are fine.", "Assistants 2 and 1 are fine."),
        ("assistant 1: 10 points", "assistant 2: 10 points"),
        (
            "The first answer, the Second AI assistant.",
            "The second answer, the First AI assistant.",
        ),
        ("Response 1 is better than Answer 2.", "Response 2 is better than Answer 1."),
        (
            "responses 1 and 2; the answer 2 is right",
            "responses 2 and 1; the answer 2 is right",
        ),
        ("ANSWER 1 beats Answer 2, Answer 1.5", "ANSWER 2 beats Answer 1, Answer 1.5"),
        ("In the first row there are 2 of 1.", "In the first row there are 2 of 1."),
        ("Assistant 3 and Assistant 12", "Assistant 3 and Assistant 12"),
    ],
)
def test_words_about_assistants(given: str, wanted: str) -> None:
    assert renumbered(given, (1, 0)) == wanted
    assert renumbered(wanted, (1, 0)) == given


def test_three_assistants() -> None:
    text = "Assistants 1, 2 and 3; the first answer"
    assert renumbered(text, (2, 0, 1)) == "Assistants 2, 3 and 1; the first answer"


def lesson_of(row: dict[str, Any], schema: str = "native") -> Lesson:
    return read_lesson(json.dumps(row).encode(), BY_NAME[schema], 1)


def test_judgelm_rows() -> None:
    rows = (ROOT / "samples" / "judgelm_100k.jsonl").read_bytes().splitlines()
    lesson = read_lesson(rows[0], BY_NAME["judgelm"], 1)
    assert lesson.plain == Teaching(("9", "2"), "The first is right.")
    assert lesson.with_reference == Teaching(("10", "1"), "The first is right.")
    with pytest.raises(RowError, match="no teacher"):
        read_lesson(rows[2], BY_NAME["judgelm"], 3)


def test_native_rows() -> None:
    row = {"question": "q", "answers": ["a", "b"], "gold": "8, 4.5\nWhy"}
    assert lesson_of(row) == Lesson(lesson_of(row).sample, Teaching(("8", "4.5"), "Why"), None)
    both = {**row, "reference": "r", "gold_without_reference": [3, 4]}
    assert lesson_of(both).with_reference == Teaching(("8", "4.5"), "Why")
    assert lesson_of(both).plain == Teaching(("3", "4"))
    assert lesson_of({**row, "reference": "r"}).plain is None


@pytest.mark.parametrize(
    ("gold", "code"),
    [
        ("1", "no-scores"),
        ("tie", "no-scores"),
        ("model_a", "no-scores"),
        (1, "no-scores"),
        ("no scores here", "no-score-line"),
        ("7 8 9", "n-scores"),
        ("error", "no-judgment"),
        (None, "no-judgment"),
        ([0, 0.5], "scores-off-scale"),
        ([8], "bad-value"),
    ],
)
def test_rows_that_teach_nothing(gold: Any, code: str) -> None:
    with pytest.raises(RowError) as error:
        lesson_of({"question": "q", "answers": ["a", "b"], "gold": gold})
    assert error.value.code == code


def test_scores_are_spelled_as_score_lines_have_them() -> None:
    assert spelled((8.0, 7.5, 10.0, 0.0, 6.2)) == ("8", "7.5", "10", "1", "6")
    with pytest.raises(RowError):
        spelled((7.1, 7.2))


def test_a_showing_is_a_value() -> None:
    assert Showing(1, (0, 1), False) == Showing(1, (0, 1), False)
