"""Lessons as tokens: asked as judging asks, taught what judging reads off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Loaded

from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Lines
from jlm_cli.errors import RowError
from jlm_cli.models import FAKE, ModelFiles
from jlm_cli.modes import mode_of
from jlm_cli.prompts import load
from jlm_cli.records import Sample
from jlm_cli.scoreline import Grammar
from jlm_cli.training.examples import (
    LINE,
    READ,
    TAUGHT,
    Example,
    ExampleMaker,
    Form,
    TaughtTemplates,
    line_of,
    make_schedule,
)
from jlm_cli.training.lessons import Lesson, Shares, Showing, Teaching, showing_of, showings
from jlm_cli.vocabularies import load_vocabulary

SAMPLE = Sample("a", 1, "Why {question}?", ("Because it is so.", "No idea."), "A reason.")
LESSON = Lesson(SAMPLE, Teaching(("8", "5.5"), "Words."), Teaching(("10", "1"), "Other words."))
FAKE_VOCABULARY = load_vocabulary(ModelFiles(FAKE, Path()))
SHOWINGS = [Showing(0, order, ref) for order in ((0, 1), (1, 0)) for ref in (True, False)]


def maker(
    form: Form | None = None, limit: int | None = None, template: str | None = None
) -> ExampleMaker:
    form = form or Form()
    return ExampleMaker(
        Lines(FAKE_VOCABULARY), TaughtTemplates.of(template, form.explain_first), form, limit
    )


def made(
    lesson: Lesson, view: Showing, form: Form | None = None, limit: int | None = None
) -> Example:
    ((_, found),) = maker(form, limit).make([lesson], [view])
    assert isinstance(found, Example), found
    return found


def part(example: Example, *roles: int) -> str:
    ids = [int(i) for i, role in zip(example.ids, example.roles, strict=True) if role in roles]
    return bytes(i for i in ids if i < 256).decode()


def judging_prompt(sample: Sample, command: str = "judge", **more: Any) -> tuple[int, ...]:
    """What a run of the command gives the model."""
    config = Config(inputs=(), output=None, model=FAKE, command=command, **more)
    (found,) = Encoder(Lines(FAKE_VOCABULARY), mode_of(config), config).encode([sample])
    assert isinstance(found, list), found
    return found[0].ids


@pytest.mark.parametrize("showing", SHOWINGS)
@pytest.mark.parametrize("form", [Form(), Form(scores_only=True), Form(explain_first=True)])
def test_the_prompt_is_the_one_that_judging_gives(showing: Showing, form: Form) -> None:
    example = made(LESSON, showing, form)
    sample, teaching = LESSON.shown(showing)
    n = int((example.roles == READ).sum())
    wanted = judging_prompt(sample, explain_first=form.explain_first)
    assert tuple(example.ids[:n]) == wanted
    assert (example.roles[n:] != READ).all()
    assert part(example, LINE).strip() == teaching.line == example.line


@pytest.mark.parametrize("reference", ["A reason.", None])
@pytest.mark.parametrize("explain_first", [False, True])
@pytest.mark.parametrize(("n", "command"), [(1, "grade"), (3, "rank"), (4, "rank")])
def test_grades_and_lists_are_asked_as_their_commands_ask(
    n: int, command: str, explain_first: bool, reference: str | None
) -> None:
    sample = Sample("a", 1, "Why?", ("x", "y", "z", "w")[:n], reference)
    teaching = Teaching(("8", "5.5", "10", "1")[:n], "It is so.")
    lesson = Lesson(sample, teaching, teaching if reference else None)
    showing = Showing(0, tuple(range(n)), reference is not None)
    example = made(lesson, showing, Form(explain_first=explain_first))
    length = int((example.roles == READ).sum())
    use_reference = reference is not None
    wanted = judging_prompt(
        sample, command, explain_first=explain_first, use_reference=use_reference
    )
    assert tuple(example.ids[:length]) == wanted
    assert part(example, LINE).strip() == teaching.line
    if command == "grade" and reference and not explain_first:
        assert part(example, TAUGHT, LINE) == " 8\nIt is so."  # behind `### Response:10`


def test_a_format_that_names_the_winner() -> None:
    """PandaLM's (Tables 12 and 13): what is written is who won."""
    lesson = Lesson(replace(SAMPLE, reference=None), Teaching(("5", "8"), "Words."))
    for order, word in (((0, 1), "2"), ((1, 0), "1")):
        showing = Showing(0, order, False)
        ((_, example),) = maker(template="pandalm").make([lesson], [showing])
        assert isinstance(example, Example)
        sample, _ = lesson.shown(showing)
        n = int((example.roles == READ).sum())
        assert tuple(example.ids[:n]) == judging_prompt(sample, template="pandalm")
        assert part(example, TAUGHT, LINE) == f"{word}\n\n### Reason: Words."
        assert part(example, LINE) == f"{word}\n"
    three = Lesson(replace(SAMPLE, answers=("x", "y", "z")), Teaching(("1", "2", "3")))
    ((_, found),) = maker(template="pandalm").make([three], [Showing(0, (0, 1, 2), False)])
    assert isinstance(found, RowError) and found.code == "n-answers"


def test_what_is_taught() -> None:
    view = Showing(0, (0, 1), False)
    assert part(made(LESSON, view), TAUGHT, LINE) == "8 5.5\nWords."
    assert part(made(LESSON, view), LINE) == "8 5.5\n"
    assert made(LESSON, view).ids[-1] == FAKE_VOCABULARY.ends[0]
    alone = made(LESSON, view, Form(scores_only=True))
    assert part(alone, TAUGHT, LINE) == "8 5.5\n" == part(alone, LINE)
    behind = made(LESSON, view, Form(explain_first=True))
    assert part(behind, TAUGHT, LINE) == "Words.\n8 5.5"
    assert part(behind, LINE) == "8 5.5"
    assert behind.roles[-1] == LINE and behind.ids[-1] == FAKE_VOCABULARY.ends[0]


def test_explain_first_needs_a_reason() -> None:
    lesson = Lesson(replace(SAMPLE, reference=None), Teaching(("8", "5")))
    ((_, found),) = maker(Form(explain_first=True)).make([lesson], [Showing(0, (0, 1), False)])
    assert isinstance(found, RowError) and found.code == "no-reason"


def test_long_samples_lose_answers_alone() -> None:
    lesson = replace(LESSON, sample=replace(SAMPLE, answers=("x" * 900, "y" * 50)))
    view = Showing(0, (0, 1), True)
    whole = made(lesson, view)
    for limit in (len(whole) - 1, len(whole) - 500, len(whole) - 900):
        example = made(lesson, view, limit=limit)
        assert len(example) == limit
        assert part(example, TAUGHT, LINE) == part(whole, TAUGHT, LINE)
        wanted = part(whole, READ).replace("x" * 900, "").replace("y" * 50, "")
        shown = part(example, READ)
        assert shown.translate({ord("x"): None, ord("y"): None}) == wanted.translate(
            {ord("x"): None, ord("y"): None}
        )
        assert any(flag.startswith("truncated:answer") for flag in example.flags)
    ((_, found),) = maker(limit=200).make([lesson], [view])
    assert isinstance(found, RowError) and found.code == "too-long"


@pytest.mark.parametrize("name", ["builtin", "released"])
def test_real_tokenizers_spell_lines_as_judging_reads_them(
    name: str, request: pytest.FixtureRequest
) -> None:
    loaded: Loaded = request.getfixturevalue(name)
    maker = ExampleMaker(Lines(loaded.vocabulary), TaughtTemplates.of(None, False), Form(), None)
    for value in Grammar().values:
        lesson = Lesson(replace(SAMPLE, reference=None), Teaching((value, "7.5"), "So it is."))
        ((_, example),) = maker.make([lesson], [Showing(0, (0, 1), False)])
        assert isinstance(example, Example)
        line = [int(i) for i in example.ids[example.roles == LINE]]
        assert line[:-1] == loaded.tokens.spell((value, "7.5"))
        assert line[-1] in loaded.tokens.ends
        words = [int(i) for i in example.ids[example.roles == TAUGHT]]
        assert loaded.vocabulary.decode(words).strip() == "So it is."
        assert words[-1] == loaded.vocabulary.ends[0]


def test_no_control_token_from_a_reason(builtin: Loaded) -> None:
    maker = ExampleMaker(Lines(builtin.vocabulary), TaughtTemplates.of(None, False), Form(), None)
    lesson = Lesson(SAMPLE, Teaching(("8", "5"), "Good.<|im_end|>Bad."))
    ((_, example),) = maker.make([lesson], [Showing(0, (0, 1), False)])
    assert isinstance(example, Example)
    learnt = [int(i) for i in example.ids[example.roles != READ]]
    assert not builtin.vocabulary.special.intersection(learnt[:-1])


def test_schedule() -> None:
    lessons = [
        replace(LESSON, sample=replace(SAMPLE, answers=("x" * (7 * n % 90), "y"), line=n))
        for n in range(50)
    ]
    epochs = [list(showings(lessons, [1.0] * 50, epoch, Shares(), 0)) for epoch in range(3)]
    schedule = make_schedule(lessons, epochs, maker(), 8, 0)
    assert schedule.steps == 19 and len(schedule.order) == 19 * 8
    seen = {showing_of(lessons[n], n, 0, Shares(), 0) for n in range(50)}
    assert len(seen) == 50
    again = make_schedule(lessons, epochs, maker(), 8, 0)
    assert again.order == schedule.order
    assert make_schedule(lessons, epochs, maker(), 8, 1).order != schedule.order
    # batches hold samples of like length, in each epoch
    for epoch in range(3):
        spread = [
            max(sizes) - min(sizes)
            for start in range(48 * epoch, 48 * (epoch + 1), 8)
            if (sizes := [len(schedule.examples[p]) for p in schedule.order[start : start + 8]])
        ]
        assert sum(spread) / len(spread) < 40


def test_small_data_still_makes_a_step() -> None:
    schedule = make_schedule([LESSON], [[Showing(0, (0, 1), False)]], maker(), 8, 0)
    assert schedule.steps == 1 and len(schedule.order) == 8
    assert schedule.entropy() == 0.0


def test_lines_that_a_template_does_not_know_are_left_out() -> None:
    """A score off its scale, a tie where there is none, a winner of three."""
    plain = replace(SAMPLE, reference=None)
    for template, sample, scores, code in (
        ("prometheus-absolute", replace(plain, answers=("x",)), ("8",), "scores-off-scale"),
        ("prometheus", plain, ("7", "7"), "no-such-verdict"),
    ):
        lesson = Lesson(sample, Teaching(scores, "Words."))
        showing = Showing(0, tuple(range(len(scores))), False)
        ((_, found),) = maker(template=template).make([lesson], [showing])
        assert isinstance(found, RowError) and found.code == code
    for unfit in (("1", "2", "3"), ("4", "4")):
        with pytest.raises(RowError):
            line_of(load("prometheus"), Teaching(unfit))


def test_lessons_are_counted_once() -> None:
    """However often they are shown."""
    odd = Lesson(replace(SAMPLE, reference=None), Teaching(("7", "7"), "Words."))
    good = Lesson(replace(SAMPLE, reference=None), Teaching(("7", "6"), "Words."))
    epochs = [[Showing(row, order, False) for row in (0, 1)] for order in ((0, 1), (1, 0))]
    found = make_schedule([odd, good], epochs, maker(template="prometheus"), 1, 0)
    assert found.left_out == {"no-such-verdict": 1} and len(found.order) == 2
