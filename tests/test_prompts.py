"""Prompts to the byte. A golden file ends in one newline that the prompt does not have."""

from __future__ import annotations

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


def rendered(name: str, sample: Sample = SAMPLE) -> str:
    return "".join(piece.text for piece in prompts.load(name).render(sample))


@pytest.mark.parametrize(
    "name", ["judgelm", "judgelm-brief", "judgelm-reference", "judgelm-reference-paper"]
)
def test_golden(name: str) -> None:
    assert rendered(name) + "\n" == (GOLDEN / f"{name}.txt").read_text()


def test_every_template_has_a_golden_render() -> None:
    assert prompts.names() == sorted(path.stem for path in GOLDEN.glob("*.txt"))


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("description = 1 =", "not a TOML template"),
        ('description = "d"\nsource = "s"\ntext = "{question}"', "key 'answer' is missing"),
        (
            'description = "d"\nsource = "s"\ntext = "{qestion}"\nanswer = "{answer}"',
            "field {qestion} is unknown",
        ),
        (
            'description = "d"\nsource = "s"\ntext = "{answer}"\nanswer = "{answer}"',
            "field {answer} is unknown",
        ),
    ],
)
def test_bad_templates_say_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ModelError, match=words):
        prompts.load(str(path))


def test_unknown_template_lists_those_there_are() -> None:
    with pytest.raises(ModelError, match="judgelm-reference"):
        prompts.load("nope")
