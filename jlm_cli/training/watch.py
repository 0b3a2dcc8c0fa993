"""What happens between the steps of training: progress, judging the watched rows, signals.

Imported only when a model is trained.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from itertools import takewhile
from types import FrameType
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jlm_cli.config import Config
from jlm_cli.encoding import Encoder
from jlm_cli.engine import Engine, Judge
from jlm_cli.errors import Ended, RowError
from jlm_cli.hf.trial import make_engine
from jlm_cli.intervals import cells_of
from jlm_cli.measuring.columns import checksum, tally_of
from jlm_cli.measuring.summary import summary_of
from jlm_cli.metrics import figures, hit_rate
from jlm_cli.modes import Asked, Mode, PairMode, record_of
from jlm_cli.records import Json, Sample
from jlm_cli.report import Report
from jlm_cli.training.course import Course

_JUDGED_AT_ONCE = 16
_WATCHED = ("agreement", "consistency", "ordering")
_STUCK = 0.97  # of the label entropy: a loss above this has learnt nothing of the answers


def without_adapter_shell(model: Any) -> Any:
    """The transformers model itself, in which peft's adapters sit."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


class Watch(TrainerCallback):
    """What happens between steps: progress, judging the watched rows, signals."""

    trainer: Trainer
    bar: Any

    def __init__(self, course: Course, report: Report) -> None:
        self.signal: int | None = None
        self._course = course
        self._report = report
        self._engine: Engine | None = None
        self._warned = False
        templates, longest = course.templates.compare, course.recipe.max_length
        self._mode = PairMode((Asked(templates),), swap=True) if course.material.watched else None
        self._config = Config((), None, course.config.base, max_length=longest)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A first signal ends the run behind the step under way, a second one at once."""
        if self.signal is not None:
            raise Ended(number)
        self.signal = number
        if not self._report.quiet:
            with suppress(OSError):  # not by a stream, which the signal may have interrupted
                os.write(2, b"\njlm: stopping behind this step; a second signal ends at once\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.bar.update(state.global_step * self._course.recipe.batch - self.bar.n)
        last = state.global_step >= self._course.schedule.steps
        watches = state.global_step % args.save_steps == 0 and not last
        if watches and not self._agreed_signal():
            with closing(self._judge_watched()) as records:
                found = figures_of(list(takewhile(self._goes_on, records)))
            shown = {f"watched_{k}": found[k]["value"] for k in _WATCHED if found.get(k)}
            due = control.should_log  # which a log of our own would clear
            if shown and self._goes_on():
                self.trainer.log(shown)
            control.should_log = due
        if self._agreed_signal():
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        entry = state.log_history[-1]
        values = [f"{k.removeprefix('watched_')} {v:.3f}" for k, v in entry.items() if _told(k, v)]
        self._report.note(
            f"step {entry['step']}/{self._course.schedule.steps}: {', '.join(values)}"
        )
        if not self._warned and self._is_stuck(state):
            self._warned = True
            self._report.note(
                f"the loss on score lines is {self._late_loss(state)[-1]:.2f}, that of guessing by "
                f"frequency is {self._course.schedule.entropy():.2f}: nothing of the answers has "
                "been learnt yet; take plainer pairs first, more samples, or another learning rate"
            )

    def _late_loss(self, state: TrainerState) -> list[float]:
        """On score lines, after the first third of the run."""
        log, steps = state.log_history, self._course.schedule.steps
        return [e["line_loss"] for e in log if "line_loss" in e and e["step"] > steps / 3]

    def _is_stuck(self, state: TrainerState) -> bool:
        """Whether in the second half of the run the loss is still that of a blind guess."""
        late, entropy = self._late_loss(state)[-10:], self._course.schedule.entropy()
        enough = state.global_step >= self._course.schedule.steps / 2 and len(late) >= 3
        return enough and entropy > 0 and float(np.mean(late)) >= _STUCK * entropy

    def _agreed_signal(self) -> bool:
        """Whether any process heard one: all must stop behind the same step."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            heard = torch.tensor([self.signal or 0], device=self.trainer.args.device)
            heard = accelerator.gather(heard).max()
            self.signal = int(heard) or None
        return self.signal is not None

    def _goes_on(self, record: Json | None = None) -> bool:
        """Whether to judge on: several processes, which may share each pass, all do."""
        return self.signal is None or self.trainer.accelerator.num_processes > 1

    def judge_watched(self) -> Json:
        """Agreement and swap consistency on the watched rows, by judging itself."""
        return figures_of(list(self._judge_watched()))

    def _judge_watched(self) -> Generator[Json]:
        course = self._course
        if self._mode is None or course.config.form.explain_first:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        base = without_adapter_shell(model)
        base.eval()
        encoder = Encoder(course.lines, self._mode, self._config)
        try:
            with self.trainer.accelerator.autocast():  # for the engine's trial as well
                if self._engine is None:
                    self._engine = make_engine(base, course.lines.vocabulary, self._report.note)
                judge = Judge(self._engine, course.lines, reason=False, new_tokens=0)
                yield from judged(course.material.watched, self._mode, encoder, judge)
        finally:
            if self._engine is not None:
                self._engine.forget()  # training needs its memory
            model.train()


def _told(name: str, value: Any) -> bool:
    return isinstance(value, float) and name not in ("epoch", "learning_rate", "grad_norm")


def judged(samples: Sequence[Sample], mode: Mode, encoder: Encoder, judge: Judge) -> Iterator[Json]:
    """The records of samples in both orders; those that cannot be judged are left out."""
    for start in range(0, len(samples), _JUDGED_AT_ONCE):
        some = samples[start : start + _JUDGED_AT_ONCE]
        there = [
            (sample, prompts)
            for sample, prompts in zip(some, encoder.encode(some), strict=True)
            if not isinstance(prompts, RowError)
        ]
        asked = [prompt for _, prompts in there for prompt in prompts]
        results = iter(judge.judge(asked) if asked else [])
        for sample, prompts in there:
            with suppress(RowError):
                yield record_of(mode, "judge", sample, [next(results) for _ in prompts])


def figures_of(records: Sequence[Json]) -> Json:
    """Agreement, macro F1, consistency and biases, baselines, and the ordering: the share of
    decided pairs, in both orders, whose better answer has the higher expected score. Nothing of
    no records."""
    if not records:
        return {}
    summary = summary_of(tally_of(records).columns(), swap=True)
    hits = [
        (_leaning(found) == wanted, checksum(record["sample"]["question"]))
        for record in records
        if (wanted := _sign(record["gold"]))
        for found in (record, record["swapped"])
    ]
    right, asked = np.array(hits, np.int64).reshape(-1, 2).T
    ordering = figures({"ordering": hit_rate}, cells_of((2,), [right], asked))
    return {
        "agreement": summary.get("objective", {}).get("agreement", {}),
        "f1": summary.get("objective", {}).get("f1", {}),
        **{k: v for k, v in summary.get("reliability", {}).items() if k != "n"},
        **(ordering if hits else {}),
        "baselines": summary.get("baselines", {}),
    }


def _leaning(found: Json) -> float:
    """1 where the first answer is expected to be better, -1 where the second is."""
    first, second = found["expected"] or (found["p"]["1"], found["p"]["2"])
    return float(np.sign(first - second))


def _sign(gold: Any) -> float:
    """Of a pair of gold scores: 1 where the first is better, -1 where the second is."""
    return float(np.sign(gold[0] - gold[1]))
