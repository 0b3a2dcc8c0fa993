"""`jlm adapter`: a model that was trained whole, as a low-rank adapter of its base.

The change of each matrix is cut to its largest singular values; small weights that are no matrix
(norms) go along as they are.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from jlm_cli import loading, models
from jlm_cli.errors import EXIT_OK, UsageError
from jlm_cli.files import check_new_folder
from jlm_cli.records import Json, dump_indented
from jlm_cli.report import Report
from jlm_cli.training.model_card import model_card
from jlm_cli.training.model_folder import SUMMARY, draft_of, put_in_place, told_when_full

_OVERSAMPLED = 16  # singular values looked at beyond those kept
_ROUNDS = 6  # power iterations, so that close singular values are told apart


@dataclass(frozen=True)
class AdapterConfig:
    """One run of `adapter`."""

    model: str
    base: str
    output: Path
    rank: int
    save_dtype: str = "bfloat16"
    overwrite: bool = False
    quiet: bool = False


def run(config: AdapterConfig) -> int:
    """Write the adapter's folder; the exit status. Raises JlmError."""
    report = Report(config.quiet)
    check_new_folder(config.output, SUMMARY, config.overwrite)
    whole, base = models.find(config.model, report.note), models.find(config.base, report.note)
    if base.adapter is not None:
        raise UsageError(f"-m {config.base}: is itself an adapter; take what lies below it")
    trained = loading.load_model(whole, "float32", {})
    adapted, kept = low_rank(loading.load_model(base, "float32", {}), trained, config.rank)
    report.note(f"rank {config.rank} keeps {kept:.1%} of the squared change of the matrices")
    draft = draft_of(config.output)
    shutil.rmtree(draft, ignore_errors=True)
    with told_when_full(config.output):
        save_adapter(adapted, draft, config.base, config.save_dtype)
        summary = _summary(config, whole, kept)
        packed = dump_indented(summary)
        (draft / SUMMARY).write_bytes(packed)
        models.keep_template(whole.template, draft)
        if "recipe" in summary:
            card = model_card(config.output.name, summary)
            (draft / "README.md").write_text(card, "utf-8", "replace")
        put_in_place(draft, config.output)
    size = sum(path.stat().st_size for path in config.output.iterdir())
    report.note(f"{config.output}: {size / 1e6:.1f} MB")
    return EXIT_OK


def low_rank(base: Any, trained: Any, rank: int) -> tuple[Any, float]:
    """The base with an adapter that brings it near the trained model, and the share of the squared
    change of the matrices that it holds. Raises UsageError where the two do not belong together.
    """
    from peft import LoraConfig, get_peft_model

    matrices, others = changes(base, trained)
    wanted = LoraConfig(
        r=rank,
        lora_alpha=rank,  # so that the scale is 1
        target_modules=sorted(matrices),
        modules_to_save=sorted(others) or None,
        task_type="CAUSAL_LM",
    )
    adapted: Any = get_peft_model(base, wanted)
    return adapted, _fill(adapted.get_base_model(), matrices, others, rank)


def changes(base: Any, trained: Any) -> tuple[Json, Json]:
    """By module: how far its matrix moved; and of what is no matrix, the weights as trained.

    Raises UsageError where an adapter cannot hold them.
    """
    import torch

    before, after = dict(base.named_parameters()), dict(trained.named_parameters())
    if {n: w.shape for n, w in before.items()} != {n: w.shape for n, w in after.items()}:
        raise UsageError("the model and the base have other shapes: one was not made of the other")
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    matrices: Json = {}
    others: Json = {}
    for name, weight in before.items():
        if torch.equal(weight, after[name]):
            continue
        owner, _, key = name.rpartition(".")
        module = base.get_submodule(owner)
        if module in embeddings:
            raise UsageError("its embeddings were trained as well: train with --freeze embeddings")
        if isinstance(module, torch.nn.Linear) and key == "weight":
            matrices[owner] = (after[name] - weight).detach()
        else:
            others.setdefault(owner, {})[key] = after[name].detach()
    if not matrices:
        raise UsageError("no matrix of the model differs from the base")
    return matrices, others


def _fill(inner: Any, matrices: Json, others: Json, rank: int) -> float:
    """Put the changes into a fresh adapter; the share of the matrices' change that fits."""
    import torch

    total = lost = 0.0
    with torch.no_grad():
        for name, change in matrices.items():
            down, up = factors(change, rank)
            layer = inner.get_submodule(name)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
            total += float(change.square().sum())
            lost += float((change - up @ down).square().sum())
        for name, weights in others.items():
            module = inner.get_submodule(name).modules_to_save["default"]
            for key, weight in weights.items():
                getattr(module, key).copy_(weight)
    return 1 - lost / total


def factors(change: Any, rank: int) -> tuple[Any, Any]:
    """down [rank, in] and up [out, rank], whose product is the nearest to change [out, in]."""
    import torch

    torch.manual_seed(0)
    width = min(rank + _OVERSAMPLED, *change.shape)
    u, s, v = torch.svd_lowrank(change, q=width, niter=_ROUNDS)
    root = s[:rank].sqrt()
    down = change.new_zeros(rank, change.shape[1])
    up = change.new_zeros(change.shape[0], rank)
    n = len(root)  # a matrix may have fewer than `rank` rows
    down[:n], up[:, :n] = (v[:, :rank] * root).T, u[:, :rank] * root
    return down, up


def save_adapter(
    model: Any, folder: Path, base: str, dtype: str, state: Json | None = None
) -> None:
    """With the base's name as `jlm -m` knows it; `state` are weights that were gathered before."""
    import torch

    path = Path(base)
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = str(path.resolve()) if path.exists() else base
        if isinstance(adapter.target_modules, set):  # whose order is chance
            adapter.target_modules = sorted(adapter.target_modules)
    weights = model.state_dict() if state is None else state
    saved = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    model.save_pretrained(folder, state_dict=saved)
    (folder / "README.md").unlink(missing_ok=True)


def _summary(config: AdapterConfig, whole: models.ModelFiles, kept: float) -> Json:
    """What the trained model's folder says of itself, and what was done to it since."""
    told = whole.folder / SUMMARY
    summary: Json = orjson.loads(told.read_bytes()) if told.is_file() else {}
    summary |= {"base": config.base, "adapter": {"rank": config.rank, "kept": round(kept, 4)}}
    if "watched" in summary:
        summary["watched"]["from"] += f", before its change was cut to rank {config.rank}"
    return summary
