"""Training on transformers' Trainer and accelerate. Imported only when a model is trained.

Every process goes through the same code; `accelerate launch` and torchrun decide how many there
are and whether weights are sharded (FSDP, DeepSpeed ZeRO-3). A global batch holds the same
samples, and its loss has the same scale, however many processes share it.
"""

from __future__ import annotations

import inspect
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils.import_utils import is_torch_tf32_available

from jlm_cli import loading, signals, vocabularies
from jlm_cli.errors import GO_ON, Ended, JlmError, UsageError
from jlm_cli.hf.attention import PRODUCTS
from jlm_cli.hf.memory import is_out_of_memory
from jlm_cli.records import Json
from jlm_cli.report import Report
from jlm_cli.training.course import Course, Trained
from jlm_cli.training.examples import LINE, READ, Example
from jlm_cli.training.low_rank import save_adapter
from jlm_cli.training.model_folder import draft_of, last_checkpoint, mark_whole, step_of
from jlm_cli.training.recipes import Recipe
from jlm_cli.training.watch import Watch, without_adapter_shell

_IGNORED = -100
_SMALLER = "use a smaller --lr, or --dtype float32"
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_LOGGED = 50  # entries of the loss in a run's history, about
_MICRO_BATCH = 8  # samples in one pass at most, where nothing else is asked for

Batch = dict[str, torch.Tensor]


def train(course: Course, report: Report) -> Trained:
    """Train to the end, from the last checkpoint if there is one; the weights go into a draft
    beside the output. Raises Ended where a signal stopped it, with a checkpoint left behind."""
    arguments = training_arguments(course)
    model = prepare_model(course, arguments.device.type)
    watch = Watch(course, report)
    trainer = JudgeTrainer(
        line_weight=1.0 if course.config.form.scores_only else course.recipe.line_weight,
        model=model,
        args=arguments,
        train_dataset=InOrder(course.schedule.examples, course.schedule.order),
        data_collator=collate,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    watch.trainer = trainer
    checkpoint = last_checkpoint(course.config.partial)
    done = 0 if checkpoint is None else step_of(checkpoint) * course.recipe.batch
    with signals.handled_by(watch.hear), report.bar(len(course.schedule.order), done) as watch.bar:
        with _told_of_memory():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if watch.signal is not None:
            report.note(
                f"stopped at step {trainer.state.global_step} of {course.schedule.steps}; {GO_ON}"
            )
            raise Ended(watch.signal)
    return _finished(trainer, course, watch)


@contextmanager
def _told_of_memory() -> Iterator[None]:
    """Raises JlmError where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
            raise
        raise JlmError(
            "memory ran out; what is done is kept. It takes less with a smaller --micro-batch, "
            "--recompute on, a lower --max-length, or --lora 8"
        ) from error


def _finished(trainer: JudgeTrainer, course: Course, watch: Watch) -> Trained:
    model = trainer.accelerator.unwrap_model(trainer.model)
    _round(model, getattr(torch, course.config.save_dtype))
    if not all(weight.isfinite().all() for weight in model.parameters() if weight.requires_grad):
        raise JlmError(f"some weights are no numbers any more; {_SMALLER}")
    found = watch.judge_watched()
    save_weights(trainer, course)
    history = [_rounded(entry) for entry in trainer.state.log_history]
    # ZeRO-3 leaves a process its share of each weight, and the whole one's size in `ds_numel`
    sizes = [(getattr(w, "ds_numel", w.numel()), w.requires_grad) for w in model.parameters()]
    return Trained(
        history=history,
        figures=found,
        weights_trained=sum(size for size, trained in sizes if trained),
        weights_total=sum(size for size, _ in sizes),
    )


def _rounded(entry: Mapping[str, Any]) -> Json:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in entry.items()}


def training_arguments(course: Course) -> TrainingArguments:
    """The recipe in the Trainer's words. Sets up the process group as well."""
    recipe, steps, config = course.recipe, course.schedule.steps, course.config
    device = course.device
    world = int(os.environ.get("WORLD_SIZE", 1))
    micro = micro_batch(recipe.batch, world, config.micro_batch)
    arguments = TrainingArguments(
        output_dir=str(config.partial),
        num_train_epochs=1,  # the schedule holds all epochs
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch // (micro * world),
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        bf16=course.dtype == "bfloat16",
        tf32=True if device == "cuda" and is_torch_tf32_available() else None,
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and world > 1 else None,
        logging_steps=max(1, steps // _LOGGED),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=max(1, math.ceil(steps / config.checkpoints)),
        save_total_limit=2,  # the older one stays until the newer is known to be whole
        seed=config.seed,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        label_names=["labels"],
    )
    if world == 1 and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process trains on one GPU; a launcher starts more
    return arguments


def micro_batch(batch: int, world: int, wanted: int | None) -> int:
    """Samples in one pass of one process. Raises UsageError where the batch cannot be shared."""
    if batch % world:
        raise UsageError(f"--batch {batch}: cannot be shared by {world} processes")
    share = batch // world
    if wanted is not None:
        if share % wanted:
            raise UsageError(f"--micro-batch {wanted}: does not divide {share}, a process's share")
        return wanted
    return max(size for size in range(1, min(share, _MICRO_BATCH) + 1) if share % size == 0)


def prepare_model(course: Course, device: str) -> Any:
    """The base with what is trained marked so. float32, since small steps vanish in bfloat16; below
    adapters the base stays as it is, and bfloat16 saves half the memory."""
    recipe = course.recipe
    half = recipe.lora and course.dtype == "bfloat16"
    files = course.files if course.adapter is None else replace(course.files, adapter=None)
    model = loading.load_model(files, "bfloat16" if half else "float32", {})
    model.config.use_cache = False
    has_sinks = any(hasattr(part, "sinks") for part in model.modules())
    if device == "cpu" and course.dtype == "bfloat16" and not has_sinks:
        model.set_attn_implementation(PRODUCTS)
    if recipe.gradient_checkpointing:
        whole: Any = model
        whole.gradient_checkpointing_enable({"use_reentrant": False})
        whole.enable_input_require_grads()
    if course.adapter is not None:
        return _trained_on(model, course.adapter)
    if recipe.lora:
        return _with_lora(model, recipe, course.config.seed)
    for frozen in _frozen(model, recipe):
        frozen.requires_grad_(False)
    return model


def _frozen(model: Any, recipe: Recipe) -> Iterator[torch.nn.Module]:
    if recipe.freeze == "embeddings":
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        yield from (embeddings for embeddings in ends if embeddings is not None)
    if recipe.freeze_layers:
        layers = model.get_decoder().layers
        if recipe.freeze_layers >= len(layers):
            raise UsageError(f"--freeze-layers {recipe.freeze_layers}: there are {len(layers)}")
        yield from layers[: recipe.freeze_layers]


def _trained_on(model: PreTrainedModel, adapter: Path) -> Any:
    from peft import PeftModel

    whole = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    for weight in whole.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return whole


def _with_lora(model: PreTrainedModel, recipe: Recipe, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)  # for the adapters' first weights
    wanted = LoraConfig(
        r=recipe.lora,
        lora_alpha=2 * recipe.lora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, wanted)


class InOrder(Dataset[Example]):
    """The examples in the order they are learnt."""

    def __init__(self, examples: Sequence[Example], order: Sequence[int]) -> None:
        self._examples = examples
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> Example:
        return self._examples[self._order[place]]


def collate(examples: Sequence[Example]) -> Batch:
    """Left-padded, so that what is learnt stands at the end of every row.

    input_ids, attention_mask, position_ids [rows, longest]; labels and line [rows, learnt + 1],
    of the last places: the model's logits are computed for these alone.
    """
    longest = max(map(len, examples))
    learnt = max(int((example.roles != READ).sum()) for example in examples)
    shape = (len(examples), longest)
    ids, roles = np.zeros(shape, np.int64), np.full(shape, READ)
    seen = np.zeros(shape, np.int64)
    for row, example in enumerate(examples):
        ids[row, -len(example) :] = example.ids
        roles[row, -len(example) :] = example.roles
        seen[row, -len(example) :] = 1
    ends = slice(longest - learnt - 1, None)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(seen),
        "position_ids": torch.from_numpy((seen.cumsum(1) - 1).clip(0)),
        "labels": torch.from_numpy(np.where(roles != READ, ids, _IGNORED)[:, ends]),
        "line": torch.from_numpy(roles[:, ends] == LINE),
    }


class JudgeTrainer(Trainer):
    """The loss on what a judge writes; beside it, that of the score lines alone."""

    loss_is_scaled_for_ga = True

    def __init__(self, line_weight: float, **given: Any) -> None:
        super().__init__(**given)
        self.line_weight = line_weight
        self.model_accepts_loss_kwargs = True  # so that learnt tokens are counted over all
        forward = without_adapter_shell(self.model).forward
        self._keeps = "logits_to_keep" in inspect.signature(forward).parameters
        self._line_loss = torch.zeros(2, dtype=torch.float64)  # summed over rows, and the rows

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        labels, line = inputs["labels"], inputs["line"]
        read = {name: value for name, value in inputs.items() if name not in ("labels", "line")}
        kept = {"logits_to_keep": labels.shape[1]} if self._keeps else {}
        outputs = model(**read, **kept, use_cache=False)
        logits = outputs.logits[:, -labels.shape[1] : -1].float()
        losses = functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="none"
        ).view(labels.shape[0], -1)
        self._line_loss[0] += float((losses.detach() * line[:, 1:]).sum())
        self._line_loss[1] += len(labels)
        assert num_items_in_batch is not None
        # gradients are averaged over processes, but each process divides by the tokens of all
        weighted = losses * (1 + (self.line_weight - 1) * line[:, 1:])
        loss = weighted.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Raises JlmError where the loss is no number any more."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise JlmError(
                f"step {self.state.global_step}: the loss is {logs['loss']}: the weights are lost; "
                f"{_SMALLER}"
            )
        if "loss" in logs:
            summed = self._line_loss.to(self.args.device, torch.float32)
            total = self.accelerator.reduce(summed)
            logs["line_loss"] = float(total[0] / total[1])
            self._line_loss.zero_()
        known = ("loss", "line_loss", "grad_norm", "learning_rate")
        kept = {k: v for k, v in logs.items() if k in known or k.startswith("watched_")}
        if kept:  # not the clock readings at the end
            super().log(kept)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """A checkpoint counts from when its last file is there."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            mark_whole(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


def _round(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights as they will be saved, so that the last figures are those of the saved model."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))


def save_weights(trainer: JudgeTrainer, course: Course) -> None:
    """The model's or the adapter's folder, as a draft without its name."""
    draft = draft_of(course.config.output)
    dtype: torch.dtype = getattr(torch, course.config.save_dtype)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_world_process_zero():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        if course.recipe.lora:
            save_adapter(model, draft, course.adapted, course.config.save_dtype, state)
        else:
            # tied weights stay one tensor, which is then saved once
            once = {weight.data_ptr(): weight.to(dtype) for weight in state.values()}
            saved = {name: once[weight.data_ptr()] for name, weight in state.items()}
            model.config.use_cache = True
            model.config.dtype = dtype
            model.save_pretrained(draft, state_dict=saved)
            vocabularies.copy_tokenizer(course.files, draft)
    trainer.accelerator.wait_for_everyone()
