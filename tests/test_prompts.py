"""Prompts to the byte. A golden file ends in one newline that the prompt does not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jlm_cli import prompts
from jlm_cli.errors import ModelError
from jlm_cli.records import Sample

GOLDEN = Path(__file__).parent / "golden"
SAMPLE = Sample(
    id=None,
    line=1,
    question="What is 1 + 1?",
    answers=("Two.", "{question} costs $answer_1 or {0.__class__}."),
    reference="2",
)


INPUT = replace(SAMPLE, question="Add the numbers.\n1 and 1", input="1 and 1")
ASKED = (prompts.ASPECTS[0], prompts.Aspect("tone", "how polite it is"))
MANY = ("One.", "Two.", "Three.", "Four.", "Five.", "Six.", "Seven.", "Eight.", "Nine.", "Ten.")
MORE = {f"{name}.{n}": (name, n) for name in ("judgelm", "judgelm-reference") for n in (3, 4, 10)}
GOLDENS = [*prompts.names(), *MORE, *(f"aspect.{aspect.name}" for aspect in prompts.ASPECTS)]


def rendered(name: str, sample: Sample = SAMPLE, asked: Sequence[prompts.Aspect] = ASKED) -> str:
    return "".join(piece.text for piece in prompts.load(name).render(sample, asked))


def golden(name: str) -> str:
    """The render that a golden file of this name holds."""
    if name in MORE:
        template, n = MORE[name]
        return rendered(template, replace(SAMPLE, answers=MANY[:n]))
    if name.startswith("aspect."):
        return rendered("judgelm-aspects", asked=[prompts.Aspect(name.removeprefix("aspect."))])
    return rendered(name, INPUT if name == "pandalm-input" else SAMPLE)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    assert golden(name) + "\n" == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_render_is_left_over() -> None:
    assert sorted(GOLDENS) == sorted(path.stem for path in GOLDEN.glob("*.txt"))


def test_grade_puts_the_reference_first_with_the_full_score() -> None:
    """Paper, Fig. 5."""
    template = prompts.load("grade")
    text = rendered("grade")
    assert "[The Start of Assistant 1's Answer]\n2\n\n[The End of Assistant 1's Answer]" in text
    assert "[The Start of Assistant 2's Answer]\nTwo.\n\n[The End of Assistant 2's" in text
    assert text.endswith("\n\n### Response:10") and template.lead == " "
    assert text.count("[Reference Answer]") == 0
    assert rendered("grade-reference-block").count("[Reference Answer]\n2\n\n[The Start") == 1


@pytest.mark.parametrize(
    ("reference", "first"),
    [("a<OR>b<OR>c", "a"), ("a<AND>b", "a and b"), ("a<AND>b<OR>c", "a<AND>b"), ("a", "a")],
)
def test_vqa_resolves_the_truth_once(reference: str, first: str) -> None:
    text = rendered("vqa", replace(SAMPLE, reference=reference))
    assert (
        f"[Reference Answer]\n{reference}\n\n[The Start of Assistant 1's Answer]\n{first}\n\n"
        in text
    )
    labels = [prompts.load("vqa").label(score) for score in (10, 8, 7.5, 2.5, 2, 1)]
    assert labels == ["right", "right", "half", "half", "wrong", "wrong"]


def test_several_answers_change_the_instruction() -> None:
    text = rendered("judgelm", replace(SAMPLE, answers=("a", "b", "c", "d")))
    assert "performance of four AI assistants" in text
    assert "containing only four values indicating the scores for Assistant 1, 2, 3 and 4," in text
    assert "The four scores are separated" in text
    assert (
        "[The Start of Assistant 4's Answer]\nd\n\n[The End of Assistant 4's Answer]\n\n[Sys"
        in text
    )


def test_fields_stay_literal_wherever_they_stand() -> None:
    hostile = "{answers}{reference}\\n$question{{question}}%s"
    text = rendered("judgelm-reference", replace(SAMPLE, question=hostile, reference=hostile))
    assert text.count(hostile) == 2


def test_pieces_name_the_fields() -> None:
    pieces = prompts.load("judgelm-reference").render(SAMPLE)
    fields = {piece.field: piece.text for piece in pieces if piece.field}
    assert fields == {
        "question": SAMPLE.question,
        "reference": "2",
        "answer_1": "Two.",
        "answer_2": SAMPLE.answers[1],
    }


HEAD = 'description = "d"\nsource = "s"\n'
PAIR = 'text = "{answer_1} {answer_2}"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("description = 1 =", "not a TOML template"),
        ('description = "d"\ntext = "{question}"', "key 'source' is missing"),
        ('description = "d"\nsource = "s"\ntext = "x"\nanswers = ""', "key 'answers' is unknown"),
        ('base = "judgelm"\n[[replace]]\nold = "nowhere"\nnew = ""', "not once in judgelm"),
        ('base = "pandalm"\n[line]\nvalues = ["1"]\nverdicts = []', "needs a verdict"),
        (
            'description = "d"\nsource = "s"\ntext = "{qestion}"\nanswer = "{answer}"',
            "field {qestion} is unknown",
        ),
        (
            'description = "d"\nsource = "s"\ntext = "{answer}"\nanswer = "{answer}"',
            "field {answer} is unknown",
        ),
        (f'{HEAD}text = "{{question}} {{answers}}"', "key 'answer' needs a text with {answer}"),
        (f'{HEAD}text = "{{question}}"', "text does not show the answers"),
        (f'{HEAD}text = "{{answer_0}} {{answer_1}}"', "field {answer_0} is unknown"),
        (f'{HEAD}text = "{{answer_1}} {{answer_3}}"', "text does not show the answers"),
        (f"{HEAD}{PAIR}[labels]\na = 'x'", r"\[labels\] need a least score each"),
        (f"{HEAD}labels = 3\n{PAIR}", r"\[labels\] need a least score each"),
        (f"{HEAD}line = 3\n{PAIR}", r"\[line\] is a table"),
        (f"{HEAD}{PAIR}[line]\nvalues = []", r"\[line\] needs values that differ"),
        (f"{HEAD}{PAIR}[line]\nvalues = ['1', 'x']", r"\[line\] needs values that differ"),
        (f"{HEAD}{PAIR}[line]\nvalues = ['1', '']", r"\[line\] needs values that differ"),
        (f"{HEAD}{PAIR}[line]\nvalues = ['1', '1']", r"\[line\] needs values that differ"),
        (f"{HEAD}{PAIR}[line]\nvalues = ['a']\nverdicts = 1", r"\[line\] is a table"),
        (f"{HEAD}{PAIR}[line]\nvalues = ['1', '1.0']", r"\[line\] needs values that differ"),
        (f"{HEAD}{PAIR}[line]\nvalue = ['1', '2']", r"\[line\] is a table"),
        (
            f"{HEAD}{PAIR}[line]\nvalues = [' A', 'B']\nverdicts = ['1', '2']",
            r"\[line\] needs values that differ, with no space",
        ),
        (f'{HEAD}{PAIR}reason_first = ""', "it cannot be empty"),
        (f"{HEAD}{PAIR}reason_first = false", "key 'reason_first' needs a text"),
        (f"{HEAD}{PAIR}with_reference = 3", "key 'with_reference' needs a text"),
        (f'{HEAD}text = "{{Question}} {{answer_1}}"', "field {Question} is unknown"),
        ('base = "judgelm"\nreplace = 5', r"each \[\[replace\]\] needs the texts"),
        ('base = "judgelm"\n[[replace]]\nold = 1\nnew = ""', r"each \[\[replace\]\] needs"),
        ('base = "judgelm"\n[[replace]]\nnew = ""', r"each \[\[replace\]\] needs the texts"),
    ],
)
def test_bad_templates_say_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ModelError, match=words):
        prompts.load(str(path))


def test_a_variant_of_a_template_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"{HEAD}{PAIR}")
    change = '[[replace]]\nold = "{answer_1}"\nnew = "First: {answer_1}"\n'
    (tmp_path / "other.toml").write_text(f'base = "mine.toml"\n{change}')
    assert prompts.load(str(tmp_path / "other.toml")).text == "First: {answer_1} {answer_2}"
    (tmp_path / "mine.toml").write_text(HEAD)
    prompts.load.cache_clear()
    with pytest.raises(ModelError, match="key 'text' is missing"):
        prompts.load(str(tmp_path / "other.toml"))
    (tmp_path / "mine.toml").write_text('base = "other.toml"')
    with pytest.raises(ModelError, match="is a variant of itself"):
        prompts.load(str(tmp_path / "mine.toml"))


def test_a_template_with_a_mark_of_its_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"\ufeff{HEAD}{PAIR}")
    assert prompts.load(str(path)).text == "{answer_1} {answer_2}"


def test_unknown_template_lists_those_there_are() -> None:
    with pytest.raises(ModelError, match="judgelm-reference"):
        prompts.load("nope")
