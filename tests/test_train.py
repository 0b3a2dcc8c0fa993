"""`jlm train` as its users run it: real processes, real signals, a small random model."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Done, Jlm, Loaded, load, pair, read_rows, write_rows

from jlm_cli import models
from jlm_cli.errors import ModelError, UsageError
from jlm_cli.intervals import wilson
from jlm_cli.training.hf_trainer import _frozen, collate, micro_batch
from jlm_cli.training.model_folder import last_checkpoint
from jlm_cli.training.recipes import PAPER, fitting
from jlm_cli.training.watch import figures_of

QUICK = ["--epochs", "1", "--batch", "8", "--max-length", "400", "--checkpoints", "5"]
BRIEF = ["--template", "judgelm-brief"]
EXACT = ["--dtype", "float32"]  # whose rounding is the same on every processor


def taught(n: int, **more: Any) -> dict[str, Any]:
    scores = ((8, 3), (2, 9), (5.5, 5.5))[n % 3]
    answers = ["It is " + "so " * (n % 9 + 1), "No. " * (n % 5 + 1)]
    gold = f"{scores[0]} {scores[1]}\nAssistant 1 says more."
    return {"id": n, "question": f"Why {n}?", "answers": answers, "gold": gold, **more}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "val.jsonl", [taught(n) for n in range(200, 204)])
    return write_rows(tmp_path / "t.jsonl", [taught(n) for n in range(200)])


def command(replica: Path, output: str = "m", *more: str) -> list[str]:
    words = ["train", "t.jsonl", "-m", str(replica), "-o", output, "--validation", "val.jsonl"]
    return [*words, *QUICK, *EXACT, *more]


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """The real command in the background."""

    def run(words: list[str], launcher: list[str] | None = None) -> subprocess.Popen[str]:
        head = launcher or [sys.executable, "-m"]
        return subprocess.Popen(
            [*head, "jlm_cli", *words],
            cwd=tmp_path,
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(models_root()))},
            preexec_fn=_hear_interrupts,
        )

    return run


def models_root() -> Path:
    return Path(models.__file__).resolve().parent.parent


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, replica: Path) -> Path:
    """The folder of a run that nothing broke off."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_rows(folder / "val.jsonl", [taught(n) for n in range(200, 204)])
    write_rows(folder / "t.jsonl", [taught(n) for n in range(200)])
    done = subprocess.run(
        [sys.executable, "-m", "jlm_cli", *command(replica)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "step 5/25" in done.stderr
    return folder / "m"


def test_a_trained_folder_judges(tmp_path: Path, jlm: Jlm, unbroken: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(3)])
    done = jlm("judge", "in.jsonl", "-m", str(unbroken), "--swap")
    assert done.code == 0, done.err
    assert len(read_rows(tmp_path / "in.judge.jsonl")) == 3
    card = (unbroken / "README.md").read_text()
    assert "| t.jsonl | 200 | 200 |" in card and "swap consistency" in card
    losses = [e["loss"] for e in run_of(unbroken)["history"] if "loss" in e]
    assert len(losses) == 25 and losses[-1] < losses[0] - 1


def run_of(folder: Path) -> Any:
    import json

    return json.loads((folder / "train.json").read_text())


def test_killed_and_resumed_it_ends_in_the_same_weights(
    tmp_path: Path, start: Start, data: Path, replica: Path, unbroken: Path
) -> None:
    process = start(command(replica))
    wait_for(tmp_path / "m.partial" / "checkpoint-10" / "whole", process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "m").exists()
    again = start(command(replica))
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert "going on from m.partial/checkpoint-" in err
    assert weights(tmp_path / "m") == weights(unbroken)
    assert run_of(tmp_path / "m")["figures"] == run_of(unbroken)["figures"]
    assert not (tmp_path / "m.partial").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_checkpoint(
    number: signal.Signals, tmp_path: Path, start: Start, data: Path, replica: Path, jlm: Jlm
) -> None:
    process = start(command(replica))
    wait_for(tmp_path / "m.partial" / "checkpoint-5" / "whole", process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err and "stopped at step" in err
    assert not (tmp_path / "m").exists()
    found = last_checkpoint(tmp_path / "m.partial")
    assert found is not None and f"stopped at step {found.name[11:]} of 25" in err
    # a half-made run is no model
    for folder in (found, found.parent):
        with pytest.raises(ModelError):
            load(str(folder))
    # another run is refused by name
    if number == signal.SIGINT:
        done = jlm(*command(replica, "m", "--lr", "0.5"))
        assert done.code == 2 and "another learning_rate" in done.err, done.err
        assert f"without the {found.name[11:]} steps that are done" in done.err
        done = jlm(*command(replica, "m", "--map", "category=question"))
        assert done.code == 2 and "another field_map" in done.err, done.err
        write_rows(data, [taught(n) for n in range(100)])
        done = jlm(*command(replica))
        assert done.code == 2 and "another data" in done.err


def test_nohup_holds_while_it_trains(
    tmp_path: Path, start: Start, data: Path, replica: Path, unbroken: Path
) -> None:
    process = start(command(replica), ["nohup", sys.executable, "-m"])
    wait_for(tmp_path / "m.partial" / "checkpoint-5" / "whole", process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert weights(tmp_path / "m") == weights(unbroken)


def test_pairs_are_watched_by_their_own_template(jlm: Jlm, data: Path, replica: Path) -> None:
    """Where the one that was named is for single answers."""
    done = jlm(*command(replica, "m", "--template", "vqa"))
    assert done.code == 0, done.err


def test_two_processes_learn_alike(
    tmp_path: Path, start: Start, data: Path, replica: Path, unbroken: Path
) -> None:
    """The same global batch, shared by two: the same loss curve within rounding."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "localhost"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    process = start(command(replica), [sys.executable, *torchrun, *meeting, "-m"])
    _, err = process.communicate()
    assert process.returncode == 0, err
    one, two = (
        {
            (e["step"], k): e[k]
            for e in run_of(folder)["history"]
            for k in ("loss", "line_loss", "grad_norm")
            if k in e
        }
        for folder in (unbroken, tmp_path / "m")
    )
    assert one.keys() == two.keys() and len(one) == 75
    assert two == pytest.approx(one, rel=2e-3)


def test_bfloat16_learns_as_float32_does(
    tmp_path: Path, jlm: Jlm, data: Path, replica: Path
) -> None:
    """All weights, over padded batches, and judging while it trains."""
    write_rows(data, [taught(n) for n in range(80)])
    found = []
    for dtype in ("float32", "bfloat16"):
        words = [one if one != "float32" else dtype for one in command(replica, dtype)]
        done = jlm(*words)
        assert done.code == 0, done.err
        history = run_of(tmp_path / dtype)["history"]
        found.append([entry["loss"] for entry in history if "loss" in entry])
        assert any("watched_agreement" in entry for entry in history)
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, jlm: Jlm, data: Path, replica: Path
) -> None:
    """Seen in the next step's loss, or after the last one in the weights."""
    write_rows(data, [taught(n) for n in range(40)])
    told = "use a smaller --lr, or --dtype float32"
    for batch, lr, message in (
        ("8", "1e30", "the weights are lost"),
        ("20", "1e39", "no numbers"),
    ):
        done = jlm(*command(replica, f"m{batch}", "--lr", lr, "--batch", batch, "--overwrite"))
        assert done.code == 1 and "Traceback" not in done.err
        assert message in done.err and told in done.err
        assert not (tmp_path / f"m{batch}").exists()


def test_an_adapter_folder_judges(tmp_path: Path, jlm: Jlm, data: Path, replica: Path) -> None:
    """LoRA, and with it rows of JudgeLM's layout, mixed by weight."""
    shutil.copy(models_root() / "samples" / "judgelm_100k.jsonl", tmp_path / "more.jsonl")
    half = ["--dtype", "bfloat16"]
    words = command(replica, "a", "--lora", "2", "--lr", "1e-3", "--weight", "more.jsonl=3", *half)
    done = jlm("train", "more.jsonl", *words[1:])
    assert done.code == 0, done.err
    assert "left out: 1 no-judgment" in done.err
    assert "2 samples have a reference: 50% are shown without it" in done.err
    found = load(str(tmp_path / "a"))
    assert found.files.adapter == tmp_path / "a" and found.files.folder == replica
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    judged = jlm("judge", "in.jsonl", "-m", "a")
    assert judged.code == 0, judged.err
    assert jlm(*command(replica, "b"), "--weight", "no.jsonl=1").code == 2
    done = jlm("train", "t.jsonl", "-m", "a", "-o", "c", "--lora", "3")
    assert done.code == 2 and "itself an adapter: --lora 2 trains it on" in done.err
    assert found.files.template is None
    done = jlm(*command(tmp_path / "a", "c", "--lr", "1e-3", *half, *BRIEF))
    assert done.code == 0, done.err
    further = load(str(tmp_path / "c"))
    assert further.files.template == "judgelm-brief"
    assert further.files.adapter == tmp_path / "c" and further.files.folder == replica
    adapted = json.loads((tmp_path / "c" / "adapter_config.json").read_text())["target_modules"]
    assert adapted == sorted(adapted)
    losses = [e["loss"] for e in run_of(tmp_path / "c")["history"] if "loss" in e]
    assert losses[0] < run_of(tmp_path / "a")["history"][0]["loss"]


def test_a_trained_model_as_an_adapter(
    tmp_path: Path, jlm: Jlm, replica: Path, unbroken: Path
) -> None:
    """At full rank the adapter is the model; at a small one it keeps a part of the change."""
    words = ["adapter", str(unbroken), "-m", str(replica), "--save-dtype", "float32"]
    full, small = (jlm(*words, "-o", f"r{rank}", "--rank", rank) for rank in ("172", "4"))
    assert full.code == 0 and "keeps 100.0%" in full.err, full.err
    assert small.code == 0 and "keeps" in small.err, small.err
    ids = torch.tensor([[1, 5, 6, 7, 300]])
    wanted, found = load(str(unbroken)), load(str(tmp_path / "r172"))
    assert found.files.adapter == tmp_path / "r172"
    with torch.inference_mode():
        assert torch.allclose(wanted.model(ids).logits, found.model(ids).logits, atol=1e-3)
    assert "before its change was cut to rank 4" in (tmp_path / "r4" / "README.md").read_text()
    done = jlm("adapter", str(replica), "-m", str(replica), "-o", "none")
    assert done.code == 2 and "no matrix of the model differs" in done.err


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "t.jsonl: is empty"),
        ("\n\n", "t.jsonl: is empty"),
        ('{"question": "q", "answers": ["a", "b"]}\n', "t.jsonl:1: no teacher's judgment"),
        ('{"question": "q", "answers": ["a", "b"], "gold": "1"}\n', "see jlm data"),
        ('{"frage": "q", "antworten": ["a", "b"]}\n', "no schema fits"),
        ("not json\n", "t.jsonl:1: not JSON"),
    ],
)
def test_bad_data(content: str, word: str, tmp_path: Path, jlm: Jlm, replica: Path) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    fails(jlm("train", "t.jsonl", "-m", str(replica), "-o", "m"), word)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jsonl"]


def fails(done: Done, word: str, code: int = 2) -> None:
    assert done.code == code and word in done.err, done.err
    assert "Traceback" not in done.err and done.err.count("\n") == 1


def test_bad_options(tmp_path: Path, jlm: Jlm, data: Path, replica: Path) -> None:
    base = str(replica)
    fails(jlm("train", "t.jsonl", "-m", "no/such/base", "-o", "m"), "no such file or folder")
    fails(jlm("train", "no.jsonl", "-m", base, "-o", "m"), "no.jsonl: cannot be read")
    fails(jlm("train", "t.jsonl", "-m", "fake", "-o", "m"), "learns nothing")
    fails(jlm("train", "t.jsonl", "-m", base, "-o", "no/m"), "there is no folder no")
    fails(jlm("train", "-", "-m", base, "-o", "m"), "give files")
    fails(jlm("train", "t.jsonl", "-m", base, "-o", "t.jsonl"), "exists")
    fails(jlm("train", "t.jsonl", "-m", base, "-o", "m", "--map", "x=y"), "no such native field")
    (tmp_path / "mine").mkdir()
    fails(jlm("train", "t.jsonl", "-m", base, "-o", "mine", "--overwrite"), "exists")
    lora = ("--lora", "4", "--freeze-layers", "1")
    fails(jlm("train", "t.jsonl", "-m", base, "-o", "m", *lora), "use --lora 0 with it")
    both = ("--explain-first", "--template", "judgelm-brief")
    fails(jlm("train", "t.jsonl", "-m", base, "-o", "m", *both), "exclude each other")
    none = ("--weight", "t.jsonl=0")
    fails(jlm("train", "t.jsonl", "-m", base, "-o", "m", *none), "--weight leaves none")


def test_a_full_disk_is_one_line_and_no_model(tmp_path: Path, data: Path, replica: Path) -> None:
    """Files may not grow beyond 4 MB: the first checkpoint does not fit."""
    done = subprocess.run(
        [sys.executable, "-m", "jlm_cli", *command(replica)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20)),
    )
    assert done.returncode == 1, done.stderr
    assert "m.partial: cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "m").exists()
    assert not list((tmp_path / "m.partial").glob("*/whole"))
    for folder in [tmp_path / "m.partial", *(tmp_path / "m.partial").glob("checkpoint-*")]:
        with pytest.raises(ModelError):
            load(str(folder))


def test_what_stays_frozen(released: Loaded) -> None:
    model = released.model
    frozen = list(_frozen(model, replace(PAPER, freeze="embeddings", freeze_layers=2)))
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    assert frozen == [*ends, *model.model.layers[:2]]
    assert not list(_frozen(model, PAPER))
    with pytest.raises(UsageError, match="there are 3"):
        list(_frozen(model, replace(PAPER, freeze_layers=3)))


def test_batches_are_shared_evenly() -> None:
    assert micro_batch(128, 1, None) == 8 and micro_batch(4, 2, None) == 2
    assert micro_batch(12, 1, 6) == 6 and micro_batch(7, 1, None) == 7
    with pytest.raises(UsageError):
        micro_batch(5, 2, None)
    with pytest.raises(UsageError):
        micro_batch(16, 2, 3)


def test_recipes() -> None:
    small, large = fitting(135_000_000, 64), fitting(7_000_000_000, 100_000)
    assert small.freeze == "embeddings" and not small.lora and small.epochs * 64 >= 640
    assert large.lora and fitting(135_000_000, 100_000).epochs == 2
    assert (PAPER.learning_rate, PAPER.warmup, PAPER.batch, PAPER.epochs) == (2e-5, 0.003, 128, 3)
    assert PAPER.max_length == 2048 and PAPER.schedule == "cosine" and PAPER.weight_decay == 0


def test_collate_keeps_what_is_learnt_at_the_end() -> None:
    import numpy as np

    from jlm_cli.training.examples import Example

    one = Example(np.array([5, 6, 7, 8], np.int32), np.array([0, 0, 2, 1], np.uint8), "")
    two = Example(np.array([3, 4], np.int32), np.array([0, 2], np.uint8), "")
    batch = collate([one, two])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [0, 0, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 7, 8], [-100, -100, 4]]
    assert batch["line"].tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.parametrize("path", sorted((models_root() / "recipes").glob("*.yaml")), ids=str)
def test_accelerate_reads_the_recipes(path: Path) -> None:
    """It refuses keys that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_processes == (16 if "33b" in path.name else 8)
    assert 128 % config.num_processes == 0


@pytest.mark.slow
def test_plain_pairs_are_learnt_by_default(tmp_path: Path, jlm: Jlm) -> None:
    """64 fitting answers beside off-topic ones, by the built-in base, without an option."""
    source = str(models_root() / "samples" / "rated_answers.jsonl")
    plain = ["--bad", "1", "--bad-kind", "off-topic", "--rows", "64", "--validation", "0"]
    assert jlm("data", source, "-o", "set", *plain).code == 0
    done = jlm("train", "set/train.jsonl", "-m", "tiny-base", "-o", "m")
    assert done.code == 0, done.err
    judged = jlm("judge", "set/train.jsonl", "-m", "m", "--swap", "-o", "out.jsonl")
    assert judged.code == 0, judged.err
    records = read_rows(tmp_path / "out.jsonl")
    gold = [{True: "1", False: "2"}[r["gold"][0] > r["gold"][1]] for r in records]
    for said in ("given", "swapped"):
        right = sum(
            (r if said == "given" else r["swapped"])["verdict"] == wanted
            for r, wanted in zip(records, gold, strict=True)
        )
        assert right >= 0.95 * 64, said


def test_both_orders_of_a_pair_say_one_thing_of_the_ordering() -> None:
    """Of 60 pairs, 45 of them right in both orders: Wilson's interval of 60, not of 120."""
    records = [
        {
            "mode": "judge",
            "verdict": "1",
            "gold": [9.0, 1.0],
            "flags": [],
            "sample": {"question": f"Q{n}", "answers": ["a", "b"]},
            "expected": [8.0, 2.0] if n < 45 else [2.0, 8.0],
            "swapped": {"verdict": "1", "expected": [8.0, 2.0] if n < 45 else [2.0, 8.0]},
        }
        for n in range(60)
    ]
    found = figures_of(records)["ordering"]
    assert found["value"] == 0.75
    assert found["ci95"] == pytest.approx(wilson(0.75, 60), abs=0.01)
