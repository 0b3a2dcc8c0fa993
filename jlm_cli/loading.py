"""A model's weights on their device, ready to judge or to be trained.

torch and transformers are imported inside the functions, so that the command line starts at once.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jlm_cli import sharding
from jlm_cli.batching import SMALLER
from jlm_cli.config import Quantize
from jlm_cli.devices import Compute, n_gpus
from jlm_cli.encoding import Vocabulary
from jlm_cli.errors import ModelError
from jlm_cli.hub import (
    LOADING_ERRORS,
    LOCKED_DOWN,
    Say,
    first_line,
    quiet_transformers,
    unsaid,
    without_gc,
)
from jlm_cli.models import FAKE, ModelFiles

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from jlm_cli.engine import Engine

_USUAL = 1.2  # places of a batch for each of its tokens, as most batches have them


@without_gc()
def load_engine(
    files: ModelFiles, vocabulary: Vocabulary, compute: Compute, say: Say = unsaid
) -> Engine:
    """The model on its device, ready to judge. Raises ModelError."""
    if files.name == FAKE:
        from jlm_cli.fake import FakeEngine

        return FakeEngine()
    import torch

    from jlm_cli.hf.trial import NotRunnable, make_engine
    from jlm_cli.hf_engine import PackedEngine

    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    bits = None if compute.quantize == "fp8" else compute.quantize
    model = load_model(files, compute.dtype, _place(compute), bits, say)
    try:
        _make_faster(model, compute)
        engine = make_engine(model, vocabulary, say)
    except NotRunnable as error:
        raise ModelError(f"model {files.name}: transformers cannot run it: {error}") from error
    except AssertionError as error:  # how bitsandbytes refuses sizes that it cannot pack
        raise ModelError(f"model {files.name}: {first_line(error)}") from error
    except IndexError as error:
        raise ModelError(
            f"model {files.name}: its tokenizer has tokens that its weights do not know"
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            f"model {files.name}: its weights leave no memory to judge with; take more GPUs "
            "(--gpus-per-model) or --quantize"
        ) from error
    if compute.quantize == "fp8":
        from jlm_cli.hf.float8 import use_float8

        use_float8(model)  # not before: the engine's trial is finer than float8
    if isinstance(engine, PackedEngine):
        engine.pool.room = compute.at_once * _USUAL * compute.batch_tokens
        if compute.at_once > 1:  # in a plan's last quarter more of them, which are smaller
            engine.at_once = SMALLER * compute.at_once
    return engine


def _make_faster(model: PreTrainedModel, compute: Compute) -> None:
    """By layers that compute the same."""
    from jlm_cli.hf.layers import fuse, use_onednn
    from jlm_cli.hf.memory import keep_memory

    if compute.device == "cuda":
        fuse(model)
    elif compute.device == "cpu":
        keep_memory()
        if compute.quantize != "fp8":  # whose products take the weights as they are
            use_onednn(model)


def _place(compute: Compute) -> str | dict[str, Any]:
    """This worker's device, or its share of them for a model that takes several GPUs."""
    import torch

    if compute.device != "cuda":
        return compute.device
    mine = gpus_of(sharding.local_rank(), compute.gpus_per_model, n_gpus())
    torch.cuda.set_device(mine[0])  # else every worker would keep a little on the first
    if len(mine) == 1:
        return f"cuda:{mine[0]}"
    share = compute.memory // compute.gpus_per_model
    return {"device_map": "auto", "max_memory": {gpu: int(0.9 * share) for gpu in mine}}


def gpus_of(local_rank: int, each: int, there: int) -> range:
    """The GPUs of one of a machine's workers. Raises ModelError where they are not there."""
    first = 0 if there == each else local_rank * each  # srun can show each process its own alone
    if first + each > there:
        raise ModelError(
            f"process {local_rank} of this machine finds no GPU left: there are {there}, "
            f"and a model takes {each}; start {there // each} processes"
        )
    return range(first, first + each)


def load_model(
    files: ModelFiles,
    dtype: str,
    device: str | dict[str, Any],
    quantize: Quantize | None = None,
    say: Say = unsaid,
) -> PreTrainedModel:
    """The weights on a device (or as `device_map` and `max_memory` say), adapter merged.

    Quantized weights keep their adapter beside them: merging would round it away.

    Code in a model's folder is never run; pickled weights go through torch's weights-only
    unpickler, as transformers does it.
    """
    import torch
    from transformers import GgufConfig

    quiet_transformers()
    source: dict[str, Any] = {"device_map": device} if isinstance(device, str) else device
    if files.gguf:
        source |= {"gguf_file": files.gguf, "quantization_config": GgufConfig(dequantize=True)}
    wanted: torch.dtype = getattr(torch, dtype)
    if quantize is not None:
        source["quantization_config"] = _quantization(quantize, wanted)
    try:
        model: PreTrainedModel
        model, about = _kind_of(files).from_pretrained(
            files.folder, dtype=wanted, output_loading_info=True, **LOCKED_DOWN, **source
        )
        _check_whole(files, sorted(about["missing_keys"]))
        if more := _layers_beyond(model, about["unexpected_keys"]):
            say(f"{files.name}: its config.json does not count all layers of its files: {more}")
        return model if files.adapter is None else _with_adapter(model, files.adapter, quantize)
    except MemoryError as error:
        raise ModelError(f"model {files.name}: its weights find no memory") from error
    except LOADING_ERRORS as error:
        raise ModelError(f"model {files.name}: {first_line(error)}{files.remedy}") from error


def _check_whole(files: ModelFiles, missing: Sequence[str]) -> None:
    """Raises ModelError where weights are not there, which transformers draws at random."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"model {files.name}: its files lack the weights {missing[0]}{more}; is this a whole "
            "model that writes text?"
        )


def _layers_beyond(model: PreTrainedModel, unexpected: Iterable[str]) -> str:
    """The first and last weight of layers that a model would have if it had more; "" for none."""
    config, known = model.config.get_text_config(), model.state_dict().keys()
    further = getattr(config, "num_nextn_predict_layers", None) or 0  # counted apart, if at all
    first = getattr(config, "num_hidden_layers", 0) + further
    found = [
        (int(number[1]), name)
        for name in unexpected
        if _NUMBER.sub(".0.", name, 1) in known and (number := _NUMBER.search(name))
    ]
    beyond = sorted(one for one in found if one[0] >= first)
    return f"{beyond[0][1]} to {beyond[-1][1]} are left out" if beyond else ""


_NUMBER = re.compile(r"\.(\d+)\.")


def _kind_of(files: ModelFiles) -> Any:
    """How transformers knows a model: as one that writes text, perhaps about images as well."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    if files.gguf:
        return AutoModelForCausalLM
    kind = type(AutoConfig.from_pretrained(files.folder, **LOCKED_DOWN))
    sees = kind in AutoModelForImageTextToText._model_mapping
    writes = kind in AutoModelForCausalLM._model_mapping
    return AutoModelForImageTextToText if sees and not writes else AutoModelForCausalLM


def _quantization(quantize: Quantize, dtype: torch.dtype) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _with_adapter(
    model: PreTrainedModel, adapter: Path, quantize: Quantize | None
) -> PreTrainedModel:
    """In the model's own format: what the adapter adds is computed in float32, and rounded once."""
    from peft import PeftModel

    if not any(adapter.glob("adapter_model.*")):  # peft would look for them on the hub
        raise ModelError(f"{adapter}: holds no weights (adapter_model.safetensors or .bin)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's own calls
        if quantize is not None:
            beside = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
            return beside.get_base_model()  # type: ignore[return-value]
        peft = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    return peft.merge_and_unload()  # type: ignore[no-any-return]
