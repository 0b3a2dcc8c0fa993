"""All that a training run works with, read and tokenised before any weight is loaded."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jlm_cli import devices, models, vocabularies
from jlm_cli.config import refuse_huge
from jlm_cli.encoding import Lines
from jlm_cli.errors import InputError, RowError, UsageError
from jlm_cli.journal import folder_of
from jlm_cli.reading.recognition import recognise
from jlm_cli.reading.source import open_source
from jlm_cli.records import Json, Sample
from jlm_cli.report import Report
from jlm_cli.training.examples import ExampleMaker, Form, Schedule, TaughtTemplates, make_schedule
from jlm_cli.training.lessons import Lesson, Shares, question_key, read_lesson, showing_of, showings
from jlm_cli.training.recipes import Named, Recipe, by_name

_HOLD_OUT_FROM = 400  # rows; fewer are all learnt from, and watched on themselves
_HELD_OUT_SHARE = 20  # one question in so many is held out
_WATCHED = 200  # rows that are judged each time, at most
_WATCHED_OF_TRAINING = 32


@dataclass(frozen=True)
class TrainConfig:
    """One run of `train`. `changes` are the recipe's settings that were given by hand; `weights`
    say how often the rows of a file come in an epoch."""

    inputs: tuple[str, ...]
    output: Path
    base: str
    recipe: Named = "auto"
    changes: tuple[tuple[str, Any], ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    shares: Shares = field(default_factory=Shares)
    form: Form = field(default_factory=Form)
    validation: str | None = None
    template: str | None = None
    device: str | None = None
    dtype: str | None = None
    micro_batch: int | None = None
    checkpoints: int = 10
    save_dtype: str = "bfloat16"
    licence: str | None = None
    schema: str = "auto"
    field_map: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        refuse_huge({**vars(self), **dict(self.changes)})

    @property
    def partial(self) -> Path:
        return folder_of(self.output)


@dataclass(frozen=True)
class Material:
    """What is learnt, each row with its weight, and what is held out to watch progress on.

    `sources` tell of each file: its name, checksum, rows and usable rows; `left_out` counts the
    others by reason.
    """

    lessons: list[Lesson]
    weights: list[float]
    watched: list[Sample]
    watched_from: str
    sources: list[Json]
    left_out: Counter[str]


@dataclass(frozen=True)
class Course:
    """All that a training run works with, before any weight is loaded.

    `dtype` is what products are computed in; weights that are trained are float32 all the while.
    """

    device: str
    dtype: str
    config: TrainConfig
    recipe: Recipe
    files: models.ModelFiles
    lines: Lines
    templates: TaughtTemplates
    material: Material
    schedule: Schedule

    @property
    def adapter(self) -> Path | None:
        """The adapter that is trained on, where the base is one."""
        return self.files.adapter if self.recipe.lora else None

    @property
    def adapted(self) -> str:
        """The name of the model that an adapter is for."""
        return self.config.base if self.adapter is None else models.adapter_facts(self.adapter)[0]


@dataclass
class Trained:
    """What came of it: the loss step by step, and figures at the end."""

    history: list[Json] = field(default_factory=list)
    figures: Json = field(default_factory=dict)
    weights_trained: int = 0
    weights_total: int = 0


def prepare(config: TrainConfig, report: Report) -> Course:
    """Read, split and tokenise the data. Raises JlmError."""
    files = models.find(config.base, report.note)
    if files.name == models.FAKE:
        raise UsageError("-m fake: the fake engine learns nothing; give a model")
    if not config.form.explain_first:
        config = replace(config, template=config.template or files.template)
    templates = TaughtTemplates.of(config.template, config.form.explain_first)
    material = read_material(config)
    lines = Lines(vocabularies.load_vocabulary(files))
    recipe = by_name(config.recipe, devices.n_weights(files), len(material.lessons))
    changes = dict(config.changes)
    if files.adapter is not None:
        rank = models.adapter_facts(files.adapter)[1]
        if changes.get("lora", rank) not in (0, rank):
            raise UsageError(
                f"-m {config.base}: is itself an adapter: --lora {rank} trains it on, --lora 0 "
                "merges it and trains all weights"
            )
        if config.recipe == "auto":
            recipe = replace(recipe, lora=rank)
    recipe = replace(recipe, **changes)
    if recipe.lora and recipe.freeze_layers:
        raise UsageError(
            "--freeze-layers is for training all weights: use --lora 0 with it (an adapter leaves "
            "the base as it is)"
        )
    maker = ExampleMaker(lines, templates, config.form, recipe.max_length)
    epochs = [
        list(showings(material.lessons, material.weights, epoch, config.shares, config.seed))
        for epoch in range(recipe.epochs)
    ]
    schedule = make_schedule(material.lessons, epochs, maker, recipe.batch, config.seed)
    if not schedule.steps:
        weighed_out = not any(epochs) and "--weight leaves none"
        why = weighed_out or _reasons(schedule.left_out)
        raise InputError(f"{', '.join(config.inputs)}: no row can be learnt from: {why}")
    device = devices.choose_device(config.device)
    dtype = config.dtype or devices.training_dtype(device)
    course = Course(device, dtype, config, recipe, files, lines, templates, material, schedule)
    _tell(course, report)
    return course


def read_material(config: TrainConfig) -> Material:
    """Raises InputError where no row can be learnt from."""
    lessons: list[Lesson] = []
    weights: list[float] = []
    sources: list[Json] = []
    left_out: Counter[str] = Counter()
    for name in config.inputs:
        found, source = _read_lessons(name, config, left_out)
        lessons += found
        weights += [dict(config.weights).get(name, 1.0)] * len(found)
        sources.append(source)
    if not lessons:
        raise InputError(f"{', '.join(config.inputs)}: no usable row: {_reasons(left_out)}")
    shares, seed = config.shares, config.seed
    if config.validation is not None:
        watched, _ = _read_lessons(config.validation, config, Counter())
        label = config.validation
    elif len(lessons) >= _HOLD_OUT_FROM and _splits(held := [*map(_is_held_out, lessons)], lessons):
        watched = [lesson for lesson, out in zip(lessons, held, strict=True) if out]
        kept = [n for n, out in enumerate(held) if not out]
        lessons, weights = [lessons[n] for n in kept], [weights[n] for n in kept]
        label = "held-out questions of the training data"
    else:
        watched = [*filter(_is_pair, lessons)][:_WATCHED_OF_TRAINING]
        label = "rows it was trained on"
    return Material(lessons, weights, _samples(watched, shares, seed), label, sources, left_out)


def _splits(held: Sequence[bool], lessons: Sequence[Lesson]) -> bool:
    """Whether something is left to learn from, and a pair to watch."""
    return not all(held) and any(
        out and _is_pair(one) for out, one in zip(held, lessons, strict=True)
    )


def _is_pair(lesson: Lesson) -> bool:
    return len(lesson.sample.answers) == 2


def _read_lessons(
    name: str, config: TrainConfig, left_out: Counter[str]
) -> tuple[list[Lesson], Json]:
    lessons: list[Lesson] = []
    with open_source(name) as source:
        schema = recognise(source, config.schema, config.field_map)
        first_error = None
        for index, raw in enumerate(source):
            try:
                lessons.append(read_lesson(raw, schema, source.line(index)))
            except RowError as error:
                left_out[error.code] += 1
                first_error = first_error or f"{source.where(index)}: {error}"
        if not lessons:
            raise InputError(first_error or f"{name}: is empty; there is no row to learn from")
        about = {"file": Path(name).name, "sha256": source.sha256(), "rows": len(source)}
    return lessons, {**about, "used": len(lessons), "schema": schema.name}


def _is_held_out(lesson: Lesson) -> bool:
    """By the question's words alone, so that no question is on both sides."""
    return zlib.crc32(question_key(lesson.sample.question).encode()) % _HELD_OUT_SHARE == 0


def _samples(lessons: Sequence[Lesson], shares: Shares, seed: int) -> list[Sample]:
    """Pairs as they are judged to watch progress, with their gold, in the order given."""
    still = Shares(swap=0.0, reference_drop=shares.reference_drop)
    pairs = [*filter(_is_pair, lessons)][:_WATCHED]
    return [
        lesson.shown(showing_of(lesson, row, 0, still, seed))[0] for row, lesson in enumerate(pairs)
    ]


def _tell(course: Course, report: Report) -> None:
    schedule, recipe, material = course.schedule, course.recipe, course.material
    left_out = material.left_out + schedule.left_out
    parts = [f"{len(material.lessons)} samples, {recipe.epochs} epochs"]
    parts.append(f"{schedule.steps} steps of {recipe.batch}")
    tokens = sum(len(schedule.examples[place]) for place in schedule.order)
    parts.append(f"{tokens:,} tokens")
    parts.append(f"{len(material.watched)} pairs watched ({material.watched_from})")
    if schedule.shortened:
        parts.append(f"{schedule.shortened} samples shortened")
    if left_out:
        parts.append(f"left out: {_reasons(left_out)}")
    report.note("; ".join(parts))
    shared = sum(lesson.with_reference is not None for lesson in material.lessons)
    if shared:
        drop = course.config.shares.reference_drop
        alone = sum(lesson.plain is None for lesson in material.lessons)
        keep = f"; {alone} have no judgment without it and keep it" if alone else ""
        report.note(f"{shared} samples have a reference: {drop:.0%} are shown without it{keep}")


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in sorted(left_out.items())) or "none"
