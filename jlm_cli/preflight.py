"""Before a weight is loaded: what a run works with, and what `--plan` tells of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jlm_cli import devices, models, vocabularies
from jlm_cli.batching import Plan, make_plan
from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Lines
from jlm_cli.hub import without_gc
from jlm_cli.modes import Mode, identity, mode_of, writes_first
from jlm_cli.reading.rows import Rows, open_rows
from jlm_cli.records import Json
from jlm_cli.report import Report
from jlm_cli.survey import Survey


@dataclass(frozen=True)
class Run:
    """What a run works with, before any weight is loaded."""

    config: Config
    rows: Rows
    files: models.ModelFiles
    mode: Mode
    lines: Lines
    encoder: Encoder
    compute: devices.Compute


@without_gc()
def open_run(config: Config, report: Report) -> Run:
    """Input, schema, tokenizer and templates of a run. Raises JlmError."""
    mode_of(config)  # what is asked for wrongly is told before a model is fetched
    rows = open_rows(config)
    files = models.find(config.model, report.note)
    mode = mode_of(config, files.template)
    compute = devices.choose_compute(files, config, _writes(config, mode))
    report.note(f"model {files.name} on {compute.device} in {compute.dtype}")
    lines = Lines(vocabularies.load_vocabulary(files))
    return Run(config, rows, files, mode, lines, Encoder(lines, mode, config), compute)


def _writes(config: Config, mode: Mode) -> bool:
    return config.reason or writes_first(mode.templates)


def fingerprint(now: Run) -> Json:
    """All that can change a byte of the output, by the names that a refusal gives."""
    return {
        **now.config.settings(),
        "input": now.rows.source.sha256(),
        "reference": None if now.rows.references is None else now.rows.references.sha256,
        "gold": None if now.rows.gold is None else now.rows.gold.sha256,
        "model": now.files.identity(),
        "template": identity(now.mode.templates),
        **now.compute.settings(),
        **devices.versions(),
    }


def plan_of(now: Run, survey: Survey) -> Plan:
    config, budget = now.config, now.compute.batch_tokens
    each = min(config.max_new_tokens, now.lines.vocabulary.context or config.max_new_tokens)
    written = each * (2 if config.swap else 1) if _writes(config, now.mode) else 0
    return make_plan(survey.rows, survey.tokens, survey.groups, budget, written)


def facts_of(now: Run, survey: Survey) -> Json:
    """What a survey found, for people and for programs."""
    tokens = np.asarray(survey.tokens, np.int64)
    measured = survey.n_with_gold > 0 or now.config.gold is not None
    n_without_gold = len(survey.rows) - survey.n_with_gold - survey.n_unreadable_gold
    return {
        "rows": len(now.rows),
        "blank": now.rows.source.n_blank,
        "schema": now.rows.schema.name,
        "judgeable": len(survey.rows),
        "errors": dict(sorted(survey.errors.items())),
        "tokens": int(tokens.sum()),
        "tokens_median": int(np.median(tokens)) if len(tokens) else 0,
        "tokens_longest_prompt": survey.longest,
        "over_the_context": survey.n_cut + survey.errors["too-long"],
        "missing_references": survey.errors["missing-reference"],
        "rows_without_gold": n_without_gold if measured else 0,
        "rows_with_unreadable_gold": survey.n_unreadable_gold,
        "first_unreadable_gold": survey.first_unreadable,
        "rows_without_id": survey.n_without_id,
        "rows_with_a_double_id": survey.n_double_ids,
        "rows_whose_reference_is_not_shown": survey.n_unshown_references,
        "batches": len(plan_of(now, survey)),
    }
