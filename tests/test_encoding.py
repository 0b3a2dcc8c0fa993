"""User text never becomes a control token, and prompts fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Loaded
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jlm_cli import prompts
from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Lines, Prompt, Vocabulary
from jlm_cli.engine import Batch, Judge, Written
from jlm_cli.errors import ModelError, RowError
from jlm_cli.fake import FakeEngine
from jlm_cli.models import FAKE, ModelFiles
from jlm_cli.modes import arranged, mode_of
from jlm_cli.records import Sample
from jlm_cli.vocabularies import _tokenizer, _vocabulary, load_vocabulary

SAMPLE = Sample("a", 1, "Why?", ("Because it is so.", "No idea."), "A reason.")
LINE = 8


def config(**more: Any) -> Config:
    return Config(inputs=("in.jsonl",), output=None, model=FAKE, **more)


def fake_encoder(**more: Any) -> Encoder:
    return encoder_of(load_vocabulary(ModelFiles(FAKE, Path())), **more)


def encoder_of(vocabulary: Vocabulary, **more: Any) -> Encoder:
    settings = config(**more)
    return Encoder(Lines(vocabulary), mode_of(settings), settings)


def text_of(prompt: Prompt) -> str:
    return bytes(prompt.ids).decode()


def encoded(encoder: Encoder, sample: Sample) -> list[Prompt]:
    (found,) = encoder.encode([sample])
    assert isinstance(found, list), found
    return found


def test_prompt_is_the_template_to_the_byte() -> None:
    (prompt,) = encoded(fake_encoder(), SAMPLE)
    pieces = prompts.load("judgelm-reference").render(SAMPLE)
    assert text_of(prompt) == "".join(piece.text for piece in pieces)


def test_both_orders() -> None:
    given, other = encoded(fake_encoder(swap=True), SAMPLE)
    (alone,) = encoded(fake_encoder(), arranged(SAMPLE, (2, 1)))
    assert text_of(other) == text_of(alone) != text_of(given)


@pytest.mark.parametrize("name", ["builtin", "released"])
def test_no_special_token_from_any_field(name: str, request: pytest.FixtureRequest) -> None:
    """Every special and added token typed into every field, alone and between words."""
    loaded: Loaded = request.getfixturevalue(name)
    vocabulary = loaded.vocabulary
    encoder = encoder_of(vocabulary, swap=True)
    tokens = sorted(str(vocabulary.tokenizer.id_to_token(id)) for id in vocabulary.special)
    assert tokens
    for token in tokens:
        for typed in (token, f"so {token}{token} it is"):
            for change in (
                {"question": typed},
                {"reference": typed},
                {"answers": (typed, "fine")},
                {"answers": ("fine", typed)},
            ):
                for prompt in encoded(encoder, replace(SAMPLE, **change)):
                    body = prompt.ids[len(vocabulary.bos) :]
                    assert not vocabulary.special.intersection(body)


def test_released_prompt_is_what_sentencepiece_gives(released: Loaded) -> None:
    """BOS, then the ids of the sentencepiece model itself; the score line digit by digit."""
    import sentencepiece

    path = str(released.files.folder / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=path)
    encoder = encoder_of(released.vocabulary)
    (prompt,) = encoded(encoder, SAMPLE)
    text = "".join(piece.text for piece in prompts.load("judgelm-reference").render(SAMPLE))
    assert list(prompt.ids) == [1, *reference.encode(text)]
    pieces = [reference.id_to_piece(id) for id in released.tokens.spell(["8", "5"])]
    assert pieces == ["8", "▁", "5"]
    assert reference.piece_to_id("<0x0A>") in released.tokens.ends


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
)
QWEN = (
    "{% for m in messages %}<s>{{ m['role'] + '\n' + m['content'] }}</s>{% endfor %}<s>judge\n"
    "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
)


def judge_with(folder: Path, template: str, **settings: Any) -> ModelFiles:
    """The replica with a chat template."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return ModelFiles("replica", folder)


def test_a_chat_template_is_spelled_with_what_it_holds(replica: Path, tmp_path: Path) -> None:
    """As the whole is spelled, where no control token stands between."""
    folder = tmp_path / "replica"
    shutil.copytree(replica, folder, ignore=shutil.ignore_patterns("*.bin"))
    files = judge_with(folder, MISTRAL)
    vocabulary = load_vocabulary(files)
    for name in ("chat-pair", "prometheus"):
        template = prompts.load(name)
        sample = replace(SAMPLE, reference=None)
        (prompt,) = encoded(encoder_of(vocabulary, template=name), sample)
        text = "".join(piece.text for piece in template.render(sample))
        whole = f"[INST] {template.chat_system}\n\n{text} [/INST]"
        assert list(prompt.ids) == _tokenizer(files)(whole).input_ids


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('never') }}", "its chat template fails: never"),
        ("no message here", "its chat template leaves messages out"),
    ],
)
def test_a_chat_template_that_shows_no_message(
    replica: Path, tmp_path: Path, template: str, why: str
) -> None:
    folder = tmp_path / "replica"
    shutil.copytree(replica, folder, ignore=shutil.ignore_patterns("*.bin"))
    vocabulary = load_vocabulary(judge_with(folder, template))
    with pytest.raises(ModelError, match=f"model replica: {why}"):
        encoder_of(vocabulary, template="chat-pair").encode([SAMPLE])


def test_a_model_that_could_think_first_does_not(replica: Path, tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    shutil.copytree(replica, folder, ignore=shutil.ignore_patterns("*.bin"))
    vocabulary = load_vocabulary(judge_with(folder, QWEN))
    assert vocabulary.wrap is not None
    wrap = vocabulary.wrap("Be fair.")
    assert wrap.tail == "judge\n" and wrap.after[0] == 2 and wrap.trail == ""
    assert wrap.before[-1] == 1 and wrap.lead == "user\n"


def test_all_ends_that_a_model_names_end_its_text(replica: Path, tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    shutil.copytree(replica, folder, ignore=shutil.ignore_patterns("*.bin"))
    assert load_vocabulary(judge_with(folder, MISTRAL)).ends == (2,)
    files = ModelFiles("other", judge_with(folder, MISTRAL, eos_token_id=[700, 2]).folder)
    vocabulary = load_vocabulary(files)
    assert vocabulary.ends == (2, 700) and {2, 700} <= {*vocabulary.line_ends}


def test_control_tokens_are_broken_up_in_every_view() -> None:
    """Of which each shows two answers of eight."""
    vocabulary = load_vocabulary(ModelFiles(FAKE, Path()))
    vocabulary.tokenizer.add_tokens(["<turn>"])
    vocabulary = replace(vocabulary, special=vocabulary.special | {257})
    sample = replace(SAMPLE, answers=tuple(f"so <turn> it is {n}" for n in range(8)))
    for prompt in encoded(encoder_of(vocabulary, command="rank", method="pairwise"), sample):
        assert 257 not in prompt.ids
        assert set(prompt.flags) == {f"special:answer_{n}" for n in range(1, 9)}


def test_cut_at_the_limit() -> None:
    """One token under, at and over the limit; far over; by each answer."""
    (whole,) = encoded(fake_encoder(), SAMPLE)
    size = len(whole.ids) + LINE
    for room, flags in ((size + 1, ()), (size, ()), (size - 1, ("truncated:answer_1",))):
        (prompt,) = encoded(fake_encoder(max_length=room), SAMPLE)
        assert prompt.flags == flags
        assert len(prompt.ids) + LINE <= room
    long = replace(SAMPLE, answers=("x" * 30000, "No idea."))
    (prompt,) = encoded(fake_encoder(max_length=size + 90), long)
    assert prompt.flags == ("truncated:answer_1",)
    assert len(prompt.ids) + LINE == size + 90
    assert "No idea." in text_of(prompt) and text_of(prompt).endswith("### Response:")
    both = replace(SAMPLE, answers=("x" * 3000, "y" * 2000))
    (prompt,) = encoded(fake_encoder(max_length=size + 90), both)
    assert prompt.flags == ("truncated:answer_1", "truncated:answer_2")
    assert text_of(prompt).count("x" * 40) == text_of(prompt).count("y" * 40)


def test_no_prompt_is_longer_than_the_model_reads() -> None:
    vocabulary = replace(load_vocabulary(ModelFiles(FAKE, Path())), context=1500)
    long = replace(SAMPLE, answers=("x" * 3000, "No idea."))
    for asked in (None, 20000):
        (prompt,) = encoded(encoder_of(vocabulary, max_length=asked), long)
        assert len(prompt.ids) + LINE == 1500 and prompt.flags == ("truncated:answer_1",)


def test_a_line_fits_behind_the_longest_reason() -> None:
    """A reason in front of it may fill up the context but for the line."""
    context, longest = 3000, 0

    class Talkative(FakeEngine):
        def write(self, prompts: Any, limits: Any, wrote: Any) -> list[Written]:
            return [Written("x" * limit, cut=True) for limit in limits]

        def begin(self, prompts: Any, drafts: Any, columns: Any) -> Batch:
            nonlocal longest
            longest = max(len(prompt) for prompt in prompts)
            return super().begin(prompts, drafts, columns)

    vocabulary = replace(load_vocabulary(ModelFiles(FAKE, Path())), context=context)
    long = replace(SAMPLE, answers=("x" * 3000, "No idea."))
    words: dict[str, Any] = {"explain_first": True, "max_new_tokens": 2000}
    prompts = encoded(encoder_of(vocabulary, **words), long)
    (found,) = Judge(Talkative(), Lines(vocabulary), reason=True, new_tokens=2000).judge(prompts)
    assert not isinstance(found, RowError) and found.flags[-1] == "reason-cut"
    assert context - LINE - 2 <= longest <= context - LINE


def made_of(tokenizer: Tokenizer, **more: Any) -> Vocabulary:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)  # type: ignore[no-untyped-call]
    return _vocabulary("mine", fast, SimpleNamespace(max_seq_len=4000), (256,))


def test_letters_that_were_added_to_a_vocabulary_are_no_control_tokens() -> None:
    tokenizer = load_vocabulary(ModelFiles(FAKE, Path())).tokenizer
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_tokens(["Ж", "10", "<think>"])
    tokenizer.add_special_tokens(["turn"])
    vocabulary = made_of(tokenizer)
    names = {str(tokenizer.id_to_token(token)) for token in vocabulary.special}
    assert names == {"<think>", "turn"} and vocabulary.context == 4000
    sample = replace(SAMPLE, answers=("Жук 10", "No <think>"))
    (prompt,) = encoded(encoder_of(vocabulary), sample)
    assert prompt.flags == ("special:answer_2",)
    assert {tokenizer.token_to_id(word) for word in ("Ж", "10")} <= {*prompt.ids}


@pytest.mark.parametrize("front", [["<a>", "<b>"], ["<b>"], []])
def test_all_that_a_tokenizer_puts_in_front_of_a_text_is_there(front: list[str]) -> None:
    """Also where it is not what the tokenizer calls the beginning of a sequence."""
    tokenizer = Tokenizer.from_str(load_vocabulary(ModelFiles(FAKE, Path())).tokenizer.to_str())
    tokenizer.add_special_tokens(["<a>", "<b>"])
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<a>", "<b>")]
    single = " ".join([*front, "$A", "<b>"])
    tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=ids)
    assert made_of(tokenizer, bos_token="<a>").bos == tuple(map(tokenizer.token_to_id, front))


def test_both_orders_are_cut_alike() -> None:
    long = replace(SAMPLE, answers=("x" * 3000, "No idea."))
    given, other = encoded(fake_encoder(max_length=1500, swap=True), long)
    assert text_of(given).count("x") == text_of(other).count("x") > 0


@pytest.mark.parametrize("field", ["question", "reference"])
def test_too_long_to_cut(field: str) -> None:
    long = replace(SAMPLE, **{field: "z" * 5000})  # type: ignore[arg-type]
    (found,) = fake_encoder(max_length=2000).encode([long])
    assert isinstance(found, RowError) and found.code == "too-long"
    assert f"field {field}" in str(found)


def test_overflow_can_be_an_error() -> None:
    (found,) = fake_encoder(max_length=500, on_overflow="error").encode([SAMPLE])
    assert isinstance(found, RowError) and "the limit is 492" in str(found)


SAID = "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + "
LAYOUTS = {  # of Phi-3, TinyLlama and Llama 2
    "phi": SAID + "'<|end|>\\n' }}{% endfor %}<|assistant|>\n",
    "tiny": SAID + "eos_token + '\\n' }}{% endfor %}<|assistant|>\n",
    "llama": "{{ bos_token }}[INST] {% for m in messages %}{% if m['role'] == 'system' %}<<SYS>>\n"
    "{{ m['content'] }}\n<</SYS>>\n\n{% else %}{{ m['content'] }} [/INST]{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chat_prompts_are_those_of_the_tokenizer(
    tmp_path: Path, replica: Path, layout: str, legacy: bool
) -> None:
    """Also where sentencepiece marks the first word of a text alone (`legacy` false)."""
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(replica / name, tmp_path)
    about = json.loads((replica / "tokenizer_config.json").read_text())
    about |= {"legacy": legacy, "chat_template": LAYOUTS[layout]}
    if layout == "phi":
        names = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        token = {"lstrip": False, "rstrip": True, "normalized": False, "special": True}
        about["added_tokens_decoder"] = {
            str(32000 + n): {**token, "content": name, "single_word": False}
            for n, name in enumerate(names)
        }
        about["additional_special_tokens"] = names
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    vocabulary = load_vocabulary(ModelFiles("m", tmp_path))
    sample = Sample("a", 1, "Why?", ("Because.", "No idea."))
    (made,) = encoder_of(vocabulary, template="chat-pair").encode([sample])
    assert isinstance(made, list)
    (prompt,) = made
    template = prompts.load("chat-pair")
    text = "".join(piece.text for piece in template.render(sample))
    said = [{"role": "system", "content": template.chat_system}, {"role": "user", "content": text}]
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    wanted = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert list(prompt.ids) == wanted
    line = Lines(vocabulary).of(template, 2).spell(["8", "5"])
    whole = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    behind = tokenizer(f"{whole}8 5", add_special_tokens=False).input_ids
    assert behind[: len(wanted)] == wanted and behind[len(wanted) :] == line
