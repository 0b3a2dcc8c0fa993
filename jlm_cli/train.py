"""`jlm train`: from rows with a teacher's judgments to a folder that `jlm judge -m` loads.

While it runs, checkpoints gather in `DIR.partial/`; the folder itself appears by rename, once
everything is in it. torch comes in with hf_trainer.py alone.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from jlm_cli import devices, models, sharding
from jlm_cli.config import file_sha256
from jlm_cli.errors import EXIT_OK, UsageError
from jlm_cli.files import check_new_folder
from jlm_cli.journal import Journal, begun, first_difference, locked
from jlm_cli.modes import identity
from jlm_cli.records import Json, dump_indented
from jlm_cli.report import Report
from jlm_cli.training.course import Course, TrainConfig, Trained, prepare
from jlm_cli.training.model_card import model_card
from jlm_cli.training.model_folder import (
    SUMMARY,
    draft_of,
    last_checkpoint,
    put_in_place,
    step_of,
    told_when_full,
)


def run(config: TrainConfig) -> int:
    """Train, and write the model's folder; the exit status. Raises JlmError."""
    _check(config)
    first = not sharding.started_by_launcher() or int(os.environ["RANK"]) == 0
    report = Report(config.quiet or not first)
    course = prepare(config, report)
    with told_when_full(config.partial), locked(config.partial) if first else nullcontext():
        if first:
            _begin(course, report)
        from jlm_cli.training import hf_trainer

        trained = hf_trainer.train(course, report)
        if first:
            _finish(course, trained, report)
    return EXIT_OK


def _check(config: TrainConfig) -> None:
    if "-" in config.inputs:
        raise UsageError("-: train reads its data more than once; give files")
    check_new_folder(config.output, SUMMARY, config.overwrite)
    for name, weight in config.weights:
        if name not in config.inputs:
            raise UsageError(f"--weight {name}={weight:g}: {name} is not among the inputs")


def _begin(course: Course, report: Report) -> None:
    """Start the run, or go on with it. Raises UsageError where another one was begun there."""
    folder = course.config.partial
    journal, facts = Journal(folder), _facts(course)
    before, found = journal.facts(), last_checkpoint(folder)
    is_other = begun(folder) and first_difference(before, facts) is not None
    if is_other and found is not None and not course.config.overwrite:
        raise journal.other_run(before, facts, f"{step_of(found)} steps")
    if is_other or not begun(folder):  # or what was not cleared away of a run that is over
        _remove_checkpoints(folder)
    journal.begin(facts, discard=is_other)
    if (found := last_checkpoint(folder)) is not None:
        report.note(f"going on from {found}")


def _remove_checkpoints(folder: Path) -> None:
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _facts(course: Course) -> Json:
    """All that can change a weight, by the names that a refusal gives."""
    config = course.config
    return {
        "data": [source["sha256"] for source in course.material.sources],
        "base": course.files.identity(),
        "template": identity(course.templates.templates),
        "validation": config.validation and file_sha256(Path(config.validation)),
        "weights": [dict(config.weights).get(name, 1.0) for name in config.inputs],
        **asdict(config.shares),
        **asdict(config.form),
        **course.recipe.json(),
        "dtype": course.dtype,
        "save_dtype": config.save_dtype,
        "seed": config.seed,
        "schema": config.schema,
        "field_map": dict(config.field_map),
        **devices.versions(),
    }


def _finish(course: Course, trained: Trained, report: Report) -> None:
    """Put the card, the settings and the history beside the weights; then give it its name."""
    config = course.config
    draft = draft_of(config.output)
    facts = _facts(course) | {"base": config.base}
    summary = {
        "base": config.base,
        "recipe": course.recipe.json(),
        "settings": facts,
        "sources": course.material.sources,
        "left_out": dict(course.material.left_out + course.schedule.left_out),
        "steps": course.schedule.steps,
        "label_entropy": round(course.schedule.entropy(), 4),
        "watched": {"rows": len(course.material.watched), "from": course.material.watched_from},
        "figures": trained.figures,
        "history": trained.history,
        "weights_trained": trained.weights_trained,
        "weights_total": trained.weights_total,
        "licence": config.licence,
    }
    (draft / SUMMARY).write_bytes(dump_indented(summary))
    (draft / "README.md").write_text(model_card(config.output.name, summary), "utf-8", "replace")
    models.keep_template(config.template, draft)
    put_in_place(draft, config.output)
    Journal(config.partial).end()
    _remove_checkpoints(config.partial)
    shutil.rmtree(config.partial)
    report.note(f"the model is in {config.output}; judge with: jlm judge -m {config.output} …")
