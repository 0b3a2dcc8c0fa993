"""Sums of two numbers for `tiny`, and the rest as it judged before:

    python recipes/tiny/sums.py ROWS.jsonl… --new NEW.jsonl -m stage-7 -o tiny

A small model that learns to write sums knows them in its last six layers alone, where no later
token can look them up, so it does not learn to check them. Here inner layers are taught as well:
linear probes, thrown away at the end, read off the next digit of the right sum before each claimed
digit, then at the claimed digit, then whether the claim holds so far. `ROWS` are scored as the
judge of before scores them, `NEW` as their gold says.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from drills import kept_out
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jlm_cli.hf.attention import PRODUCTS
from jlm_cli.loading import load_model
from jlm_cli.prompts import load
from jlm_cli.records import Sample
from jlm_cli.report import Report
from jlm_cli.training.course import Course, TrainConfig, prepare
from jlm_cli.training.examples import Example
from jlm_cli.training.hf_trainer import collate, prepare_model
from jlm_cli.training.lessons import Shares
from jlm_cli.training.low_rank import save_adapter

TEMPLATE = load("judgelm-brief")
LARGEST = 80
TEXTS = (
    *["{a} + {b} = {c}"] * 2,
    "{a} + {b} = {c}.",
    "What is {a} + {b}? {c}",
    "{a} + {b} is {c}.",
    "The sum of {a} and {b} is {c}.",
)
QUESTIONS = (*["What is {}?"] * 2, "Calculate {}.", "How much is {}?", "{} = ?")
ANSWERS = (*["{a} + {b} = {c}"] * 2, "{a} + {b} = {c}.", *["{c}", "{c}."], "The result is {c}.")
SAME = 0.12  # pairs of which both answers are right, or both wrong
ONE_FORM = 0.8  # pairs whose answers are worded alike


@dataclass(frozen=True)
class Phase:
    """What a step reads, and for how many steps; the rate falls to `last_rate` of itself."""

    steps: int
    rate: float
    last_rate: float
    documents: int
    pairs: int
    rows: int = 0
    new: int = 0

    def rate_at(self, step: int) -> float:
        fall = 0.5 + 0.5 * math.cos(math.pi * step / self.steps)
        share = self.last_rate + (1 - self.last_rate) * fall
        return self.rate * share * min(1.0, (step + 1) / 30)


PHASES = (
    Phase(700, 6e-4, 1.0, documents=8, pairs=0),
    Phase(300, 6e-4, 1.0, documents=4, pairs=12),
    Phase(800, 4e-4, 0.0, documents=1, pairs=4, rows=8, new=3),
)
NEW_SHARE = 0.3  # what the loss of a new row counts
NEXT, HERE, HOLDS = 22, 24, 25  # the layers that probes read
FIRST_TAUGHT = 12  # layers below stay as they are
IN_DOCUMENT = 16  # sums


@dataclass
class Reading:
    """Token ids, and what inner layers are to know at which places; the last `scored` ids are a
    score line."""

    ids: list[int]
    digits: list[tuple[int, int]] = field(default_factory=list)  # place before a claimed digit
    holds: list[tuple[int, bool]] = field(default_factory=list)
    scored: int = 0


@dataclass(frozen=True)
class Claim:
    """A sum's claimed result, from a character of its text on, and the right one."""

    start: int
    claimed: str
    truth: str

    def moved(self, by: int) -> Claim:
        return replace(self, start=self.start + by)


class Sums:
    """Texts that claim sums, as token ids. Digits are tokens of their own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self._tokenizer = tokenizer
        self._draw = random.Random(seed)

    def document(self) -> Reading:
        """Sums, right and wrong, line by line."""
        text, claims = "", []
        for _ in range(IN_DOCUMENT):
            a, b = self._numbers()
            line, claim = self._claim(self._draw.choice(TEXTS), a, b, self._draw.random() < 0.5)
            claims.append(claim.moved(len(text)))
            text += line + "\n"
        return self._read(text, claims, len(text))

    def pair(self) -> Reading:
        """Two answers to one sum, with their scores."""
        draw = self._draw
        a, b = self._numbers()
        first = draw.random() < 0.5
        rights = (first, first if draw.random() < SAME else not first)
        form = draw.choice(ANSWERS)
        one_form = draw.random() < ONE_FORM
        said = [
            self._claim(form if one_form else draw.choice(ANSWERS), a, b, right) for right in rights
        ]
        question = draw.choice(QUESTIONS).format(f"{a} + {b}")
        sample = Sample(None, 1, question, tuple(text for text, _ in said))
        prompt = "".join(piece.text for piece in TEMPLATE.render(sample))
        at = prompt.index(question) + len(question)
        claims = []
        for text, claim in said:
            at = prompt.index(f"\n{text}\n", at) + 1
            claims.append(claim.moved(at))
        line = " ".join("9" if right else "2" for right in rights)
        return self._read(f"{prompt}{line}\n", claims, len(prompt))

    def _numbers(self) -> tuple[int, int]:
        while True:
            a, b = (self._draw.randint(2, LARGEST) for _ in range(2))
            if not kept_out(a, b):
                return a, b

    def _wrong(self, right: int) -> int:
        draw = self._draw
        while True:
            kind = draw.choices(("tens", "units", "any"), (0.45, 0.35, 0.2))[0]
            off = {"tens": draw.choice((10, 10, 10, 20)), "units": draw.choice((1, 1, 2, 3))}
            wrong = right + draw.choice((-1, 1)) * off.get(kind, draw.randint(1, 30))
            if wrong > 0:
                return wrong

    def _claim(self, form: str, a: int, b: int, right: bool) -> tuple[str, Claim]:
        claimed = a + b if right else self._wrong(a + b)
        before, behind = form.replace("{a}", str(a)).replace("{b}", str(b)).split("{c}")
        return f"{before}{claimed}{behind}", Claim(len(before), str(claimed), str(a + b))

    def _read(self, text: str, claims: Sequence[Claim], prompt: int) -> Reading:
        """`prompt`: how many characters of the text stand before its score line."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in found.offset_mapping]
        reading = Reading(found.input_ids, scored=sum(start >= prompt for start in starts))
        for claim in claims:
            first = starts.index(claim.start)
            for n in range(len(claim.claimed)):
                if n < len(claim.truth):
                    reading.digits.append((first + n - 1, int(claim.truth[n])))
                holds = claim.claimed[: n + 1] == claim.truth[: n + 1]
                reading.holds.append((first + n, holds))
            reading.holds.append((first + len(claim.claimed), claim.claimed == claim.truth))
        return reading


class Probed:
    """A model whose inner layers are taught through linear probes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        inner = model.get_base_model()
        self._decoder, self._head = inner.model, inner.lm_head
        self._width = inner.config.hidden_size
        self._known: dict[int, torch.Tensor] = {}
        for layer in (NEXT, HERE, HOLDS):
            self._decoder.layers[layer - 1].register_forward_hook(self._keep(layer))
        sizes = {NEXT: 10, HERE: 10, HOLDS: 1}
        self._probes = {layer: torch.nn.Linear(self._width, n) for layer, n in sizes.items()}

    def parameters(self) -> list[torch.nn.Parameter]:
        return [weight for probe in self._probes.values() for weight in probe.parameters()]

    def _keep(self, layer: int) -> Any:
        def hook(module: torch.nn.Module, given: Any, made: Any) -> None:
            self._known[layer] = made[0] if isinstance(made, tuple) else made

        return hook

    def _probe(self, layer: int, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        states = self._known[layer][rows, places].float()
        return self._probes[layer](functional.rms_norm(states, (self._width,)))  # type: ignore[no-any-return]

    def loss(self, readings: Sequence[Reading]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the probes and, where there are score lines, of these; and the share of right checks
        where a claim ends or goes wrong."""
        longest = max(len(reading.ids) for reading in readings)
        ids = torch.tensor([r.ids + [0] * (longest - len(r.ids)) for r in readings])
        with torch.autocast("cpu", torch.bfloat16):
            states = self._decoder(input_ids=ids).last_hidden_state
        digits = [(n, place, digit) for n, r in enumerate(readings) for place, digit in r.digits]
        rows, places, wanted = torch.tensor(digits).T
        loss = functional.cross_entropy(self._probe(NEXT, rows, places), wanted)
        loss += functional.cross_entropy(self._probe(HERE, rows, places + 1), wanted)
        claims = [(n, place, holds) for n, r in enumerate(readings) for place, holds in r.holds]
        rows, places, holds = torch.tensor(claims).T
        found = self._probe(HOLDS, rows, places)[:, 0]
        loss += functional.binary_cross_entropy_with_logits(found, holds.float())
        lines = [
            (n, len(r.ids) - k) for n, r in enumerate(readings) for k in range(1, r.scored + 1)
        ]
        if lines:
            rows, places = torch.tensor(lines).T
            scored = states[rows, places - 1].to(self._head.weight.dtype)
            logits = self._head(scored).float()
            summed = functional.cross_entropy(logits, ids[rows, places], reduction="sum")
            loss = loss / 2 + summed / len(readings)
        return loss, ((found > 0) == (holds > 0)).float().mean()


@dataclass(frozen=True)
class Rows:
    """In the order they are learnt in."""

    before: Sequence[Example]
    new: Sequence[Example]


def kept(model: Any, teacher: Any, examples: Sequence[Example]) -> torch.Tensor:
    """How far a model's distributions are from its teacher's, in nats a row; a reason's tokens
    count a fifth."""
    with torch.no_grad():
        wanted, _, _ = distributions(teacher, examples)
    found, _, lines = distributions(model, examples)
    apart = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    return (apart * torch.where(lines, 1.0, 0.2)).sum() / len(examples)


def learnt(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """How surprising the right tokens are, in nats a row."""
    found, wanted, _ = distributions(model, examples)
    return functional.nll_loss(found, wanted, reduction="sum") / len(examples)


def distributions(
    model: Any, examples: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each token that is learnt: log probabilities of all, the right one, and whether it is
    of a score line."""
    batch = collate(examples)
    labels, line = batch.pop("labels"), batch.pop("line")
    taught = labels[:, 1:] >= 0
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**batch, logits_to_keep=labels.shape[1], use_cache=False).logits[:, :-1]
    return logits[taught].float().log_softmax(-1), labels[:, 1:][taught], line[:, 1:][taught]


def taught_weights(model: Any) -> list[torch.nn.Parameter]:
    """Those of the adapter's upper layers; all others stay as they are."""
    weights = []
    for name, weight in model.named_parameters():
        _, _, behind = name.partition(".layers.")
        if not weight.requires_grad or not behind or int(behind.split(".")[0]) < FIRST_TAUGHT:
            weight.requires_grad_(False)
        else:
            weights.append(weight)
    return weights


def learn(probed: Probed, teacher: Any, sums: Sums, rows: Rows) -> None:
    model, weights = probed.model, taught_weights(probed.model)
    groups = [{"params": weights, "share": 1.0}, {"params": probed.parameters(), "share": 5.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    before, new = cycle(rows.before), cycle(rows.new)
    for phase in PHASES:
        for step in range(phase.steps):
            for group in optimizer.param_groups:
                group["lr"] = phase.rate_at(step) * group["share"]
            told: list[float] = [step]
            for make, count in ((sums.document, phase.documents), (sums.pair, phase.pairs)):
                if count:
                    loss, right = probed.loss([make() for _ in range(count)])
                    loss.backward()  # type: ignore[no-untyped-call]
                    told += [loss.item(), right.item()]
            if phase.rows:
                apart = kept(model, teacher, list(islice(before, phase.rows)))
                apart.backward()  # type: ignore[no-untyped-call]
                loss = NEW_SHARE * learnt(model, list(islice(new, phase.new)))
                loss.backward()  # type: ignore[no-untyped-call]
                told += [apart.item(), loss.item() / NEW_SHARE]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 19:
                print(*(round(figure, 3) for figure in told), flush=True)


def in_order(course: Course) -> list[Example]:
    return [course.schedule.examples[place] for place in course.schedule.order]


def course_of(files: Sequence[str], batch: int, given: argparse.Namespace) -> Course:
    changes = (("lora", 32), ("batch", batch), ("max_length", 900), ("epochs", 1))
    config = TrainConfig(
        inputs=tuple(files),
        output=given.output,
        base=str(given.model),
        changes=changes,
        shares=Shares(reference_drop=0.0),
        template=TEMPLATE.name,
    )
    return prepare(config, Report(quiet=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--new", required=True)
    parser.add_argument("-m", "--model", required=True, type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    given = parser.parse_args()
    course = course_of(given.rows, PHASES[-1].rows, given)
    new = course_of([given.new], PHASES[-1].new, given)
    rows = Rows(in_order(course), in_order(new))
    teacher: Any = load_model(course.files, "bfloat16", "cpu")
    teacher.eval()
    teacher.set_attn_implementation(PRODUCTS)
    model = prepare_model(course, "cpu")
    torch.manual_seed(0)  # for the probes' first weights
    tokenizer = AutoTokenizer.from_pretrained(course.files.folder)
    learn(Probed(model), teacher, Sums(tokenizer, seed=1), rows)
    given.output.mkdir()
    save_adapter(model, given.output, "tiny-base", "bfloat16")
    shutil.copy(given.model / "judge.json", given.output)


if __name__ == "__main__":
    main()
