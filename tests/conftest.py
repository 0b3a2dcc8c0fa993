"""Real small models for tests: the built-in base, and a replica of JudgeLM's checkpoint folders."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faulty import Runs
from hypothesis import settings

from jlm_cli import loading, models, prompts, vocabularies
from jlm_cli.encoding import Lines, Vocabulary
from jlm_cli.scoreline import LineTokens

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = (  # by a name that needs no resolving
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--nproc-per-node", "2", "--local-addr", "localhost"),
)

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the hub
for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)  # help and messages in colours
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job, whose
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children would ignore it as well
for number in (signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:  # as nohup has it
        signal.signal(number, signal.SIG_DFL)
if "PYTEST_XDIST_WORKER" in os.environ:  # whose parent has set it already, for itself
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")


settings.register_profile("the same each time", deadline=None, derandomize=True, database=None)
settings.load_profile("the same each time")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Jlm = Callable[..., Done]


@pytest.fixture
def jlm(tmp_path: Path) -> Jlm:
    """Run the real command in an empty folder, with the fake engine where none is named."""

    def run(*words: str, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "jlm_cli", *words],
            input=data,
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "JLM_MODEL": "fake", "COLUMNS": "120", **(env or {})},
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    """The same, from a process that has loaded everything before: a run takes a moment."""
    started = Runs()
    yield started
    started.close()


@pytest.fixture
def quick(tmp_path: Path, runs: Runs) -> Jlm:
    """`jlm` in this way, for tests of what it reads and says."""

    def run(*words: str, stdin: str | bytes = b"") -> Done:
        given = tmp_path.with_name(f"{tmp_path.name}-stdin")
        given.write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        done = runs(tmp_path, *words, stdin=str(given))
        return Done(done.code, done.out, done.err)

    return run


_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(folder: Path, *words: str) -> tuple[int, float]:
    """The exit code of a command there, and the most memory that it took, in bytes.

    Linux counts what a process was before its exec, a copy of this one, into its peak: the command
    is started by a small process of its own.
    """
    told = subprocess.check_output([sys.executable, "-c", _MEASURE, *words], cwd=folder)
    code, peak = map(int, told.split())
    return code, peak * 1024


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def pair(row_id: Any, **more: Any) -> dict[str, Any]:
    """A good native row."""
    return {"id": row_id, "question": f"Question {row_id}?", "answers": ["Yes.", "No."], **more}


@pytest.fixture(scope="session")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaMA in the layout of BAAI/JudgeLM-7B-v1.0.

    Sharded .bin weights with an index, a config.json as transformers 4.28 wrote it, a
    sentencepiece tokenizer.model with its two JSON files, and no tokenizer.json.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("replica")
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=32000,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        initializer_range=0.2,
    )
    state = LlamaForCausalLM(small).state_dict()
    names = sorted(state)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
    for number, half in enumerate(halves, start=1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name].to(torch.bfloat16) for name in half}, folder / file)
        index["weight_map"] |= dict.fromkeys(half, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_OLD_CONFIG))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9})
    )
    shutil.copy(_sentencepiece_model(), folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(_OLD_TOKENIZER_CONFIG))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    return folder


_OLD_CONFIG = {
    "_name_or_path": "vicuna-7b-v1.3",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 172,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": 32000,
}

_OLD_TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": 2048,
    "pad_token": None,
    "padding_side": "right",
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}


def _sentencepiece_model() -> Path:
    """LLaMA's kind of tokenizer.model, from a package that ships one."""
    data = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    return Path(str(data))


@dataclass(frozen=True, eq=False)
class Loaded:
    """A real model in float32 with all that judging needs."""

    files: models.ModelFiles
    vocabulary: Vocabulary
    tokens: LineTokens
    model: Any


def load(name: str) -> Loaded:
    files = models.find(name, lambda text: None)
    vocabulary = vocabularies.load_vocabulary(files)
    tokens = Lines(vocabulary).of(prompts.load("judgelm"), 2)
    return Loaded(files, vocabulary, tokens, loading.load_model(files, "float32", "cpu"))


@pytest.fixture(scope="session")
def released(replica: Path) -> Loaded:
    return load(str(replica))


@pytest.fixture(scope="session")
def builtin() -> Loaded:
    return load(models.TINY_BASE)
