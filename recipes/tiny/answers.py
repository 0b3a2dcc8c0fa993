"""More questions and answers for the built-in judge to learn from, written by its own bare base:

python recipes/tiny/answers.py SCORED.jsonl.gz FOLDER SEED

FOLDER/scored.jsonl is SCORED with three answers of the base to each question, as a model that
never wins: beside them a real answer is the better one. FOLDER/pairs.jsonl holds pairs of the
base's answers that nobody has judged, to those questions and to new ones that it wrote itself
after their example: `teach.py` gives them the judgment that trained judges agree on. Questions
that `jlm data` keeps for validation have no part in it.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pick import OWN
from transformers import AutoModelForCausalLM, AutoTokenizer

from jlm_cli.builtin import builtin_base
from jlm_cli.training.data import for_validation
from jlm_cli.training.lessons import question_key

_NEW_QUESTIONS = 2600  # attempts; doubles and odd ones fall away
_SHOWN = 4  # questions shown as an example for new ones
_BATCH = 96
_WARMTHS = (0.3, 0.7, 1.0, 1.3)  # sampling temperatures: from sober to confused
_ASKING = (
    "{q}",
    "{q}\nAnswer in one sentence.",
    "{q}\nAnswer briefly.",
    "{q}\nAnswer in two sentences.",
)


class Writer:
    """The bare base, sampling continuations of many prompts at a time."""

    def __init__(self) -> None:
        folder = builtin_base(lambda text: print(text, file=sys.stderr))
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def write(self, prompts: Sequence[str], length: int, warmth: float) -> list[str]:
        """A continuation for each prompt, of `length` tokens at most."""
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            fed = self.tokenizer([prompts[n] for n in chosen], return_tensors="pt", padding=True)
            with torch.inference_mode():
                out = self.model.generate(  # type: ignore[misc]
                    **fed, max_new_tokens=length, do_sample=True, temperature=warmth, top_p=0.95
                )
            new = out[:, fed["input_ids"].shape[1] :]
            written = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            for n, text in zip(chosen, written, strict=True):
                texts[n] = text.strip()
            print(f"{start + len(chosen)} of {len(prompts)}", file=sys.stderr)
        return texts


def new_questions(known: Sequence[str], writer: Writer, draw: random.Random) -> list[str]:
    short = [question for question in known if len(question) < 220 and "\n" not in question]
    prompts = []
    for _ in range(_NEW_QUESTIONS):
        shown = "".join(f"Task: {question}\n" for question in draw.sample(short, _SHOWN))
        prompts.append(f"Tasks that people give to an assistant:\n{shown}Task:")
    seen = {question_key(question) for question in known}
    found = []
    for text in writer.write(prompts, 40, 0.8):
        question = text.split("\n")[0].strip()
        key = question_key(question)
        ended = question.endswith((".", "?", "!"))
        if ended and 20 < len(question) < 240 and key not in seen and not key.startswith("task"):
            seen.add(key)
            found.append(question)
    return found


def answers(questions: Sequence[str], writer: Writer, draw: random.Random) -> list[str]:
    """An answer for each question, of any length up to some 300 characters."""
    texts = [""] * len(questions)
    parts: dict[tuple[int, float], list[int]] = {}
    for n in range(len(questions)):
        parts.setdefault((draw.choice((24, 48, 72)), draw.choice(_WARMTHS)), []).append(n)
    for (length, warmth), chosen in sorted(parts.items()):
        prompts = [asked(questions[n], draw) for n in chosen]
        for n, text in zip(chosen, writer.write(prompts, length, warmth), strict=True):
            texts[n] = whole_sentences(text)
    return texts


def asked(question: str, draw: random.Random) -> str:
    content = draw.choice(_ASKING).format(q=question)
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def whole_sentences(text: str) -> str:
    """Without a last sentence that was cut off, where there is another before it."""
    if text.endswith((".", "!", "?", '"', "`")):
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text)]
    return text[: ends[-1]] if ends else text


def learnt_from(scored: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(scored, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if not for_validation(question_key(row["question"]), 0.1):
                yield row


def main() -> None:
    scored, folder, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    draw = random.Random(seed)
    writer = Writer()
    rows = list(learnt_from(scored))
    known = [row["question"] for row in rows]
    asked_twice = [question for question in known if len(question) < 400 for _ in range(3)]
    new = new_questions(known, writer, draw)
    asked_twice += [question for question in new for _ in range(2)]
    written = answers(asked_twice, writer, draw)
    by_question: dict[str, list[str]] = {}
    for question, text in zip(asked_twice, written, strict=True):
        by_question.setdefault(question, []).append(text)
    with (folder / "scored.jsonl").open("w") as out:
        for row in rows:
            own = by_question.get(row["question"], [])
            row["answers"] += [{"model": OWN, "text": text, "win_prob": 0.0} for text in own]
            print(json.dumps(row, ensure_ascii=False), file=out)
    with (folder / "pairs.jsonl").open("w") as out:
        for question, texts in by_question.items():
            if texts[0] != texts[1]:
                row = {"question": question, "answers": texts[:2]}
                print(json.dumps(row, ensure_ascii=False), file=out)


if __name__ == "__main__":
    main()
