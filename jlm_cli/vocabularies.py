"""A model's tokenizer and chat template, without its weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from jlm_cli.encoding import ChatWrap, Vocabulary, with_controls
from jlm_cli.errors import ModelError
from jlm_cli.hub import LOADING_ERRORS, LOCKED_DOWN, first_line, quiet_transformers
from jlm_cli.models import FAKE, ModelFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_vocabulary(files: ModelFiles) -> Vocabulary:
    """The tokenizer of a model, without its weights. Raises ModelError."""
    if files.name == FAKE:
        from jlm_cli.fake import fake_vocabulary

        return fake_vocabulary()
    tokenizer = _tokenizer(files)
    config = text_config(files)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"model {files.name}: its tokenizer has no fast form")
    ends = _ends(files, tokenizer, config)
    return _vocabulary(files.name, tokenizer, config, ends, _tells_of_marks(files.folder))


def _ends(files: ModelFiles, tokenizer: Any, config: Any) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's own first, and those of the model's settings,
    which name more of them (the end of a turn)."""
    told = getattr(config, "eos_token_id", None)
    path = files.folder / "generation_config.json"
    if files.gguf is None and path.is_file():
        with suppress(orjson.JSONDecodeError, AttributeError):
            told = orjson.loads(path.read_bytes()).get("eos_token_id", told)
    more = told if isinstance(told, list) else [told]
    given = [tokenizer.eos_token_id, *more]
    return tuple(dict.fromkeys(one for one in given if type(one) is int))


@cache
def _tokenizer(files: ModelFiles) -> Any:
    """As transformers knows it. Raises ModelError."""
    from transformers import AutoTokenizer

    quiet_transformers()
    source: dict[str, Any] = {"gguf_file": files.gguf} if files.gguf else {}
    try:
        return AutoTokenizer.from_pretrained(files.folder, **LOCKED_DOWN, **source)
    except LOADING_ERRORS as error:
        raise ModelError(f"model {files.name}: {first_line(error)}{files.remedy}") from error


def text_config(files: ModelFiles) -> Any:
    """The configuration of the language model in a folder. Raises ModelError."""
    return whole_config(files).get_text_config()


def whole_config(files: ModelFiles) -> Any:
    """The configuration of all that a folder's model is. Raises ModelError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    source: dict[str, Any] = {"gguf_file": files.gguf} if files.gguf else {}
    try:
        return AutoConfig.from_pretrained(files.folder, **LOCKED_DOWN, **source)
    except (*LOADING_ERRORS, StrictDataclassError) as error:
        raise ModelError(f"model {files.name}: {first_line(error)}{files.remedy}") from error


def chat_layout(files: ModelFiles) -> Callable[[int, str | None], list[str]] | None:
    """What a model's own chat template writes around N messages, the user's first: N + 1 texts.

    It takes N and a system prompt. None where the model has no chat template. The texts are
    found with marks in place of the messages, so that no message can pass for a part of the
    template. Raises ModelError.
    """
    if files.name == FAKE or not (tokenizer := _tokenizer(files)).chat_template:
        return None
    return lambda count, system: _around(files.name, tokenizer, count, system)


def _around(name: str, tokenizer: Any, count: int, system: str | None) -> list[str]:
    marks = [f"\ue000{n}\ue001" for n in range(count)]
    said = [{"role": ("user", "assistant")[n % 2], "content": mark} for n, mark in enumerate(marks)]
    folded = [{**said[0], "content": f"{system}\n\n{marks[0]}"}, *said[1:]]
    attempts = (
        [said] if system is None else [[{"role": "system", "content": system}, *said], folded]
    )
    for messages in attempts:
        try:
            text = _applied(tokenizer, messages)
            break
        except Exception as error:  # whatever it raises; perhaps it knows no system role
            failure = error
    else:
        reason = first_line(failure)
        raise ModelError(f"model {name}: its chat template fails: {reason}")
    parts = re.split("(\ue000\\d+\ue001)", text)
    if parts[1::2] != marks:
        raise ModelError(f"model {name}: its chat template leaves messages out")
    return parts[::2]


def _tells_of_marks(folder: Path) -> bool:
    """Whether a tokenizer's files say which words are marked as first. Those of sentencepiece alone
    say nothing: their models learnt from tokenizers that marked the first of each stretch."""
    if (folder / "tokenizer.json").is_file():
        return True
    try:
        about = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return isinstance(about, dict) and about.get("legacy") is False


def _vocabulary(
    name: str, tokenizer: Any, config: Any, ends: tuple[int, ...], tells_of_marks: bool = False
) -> Vocabulary:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True  # what users type is text, never a control token
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if _controls(token)}
    special = (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    within = _within(plain) if tells_of_marks else None
    return Vocabulary(
        tokenizer=plain,
        bos=_in_front(tokenizer),
        ends=ends,
        line_ends=_line_ends(plain.get_vocab(), ends),
        special=frozenset(special),
        context=_context(config),
        wrap=_chat_wrap(name, tokenizer, plain, within) if tokenizer.chat_template else None,
        within=within,
    )


def _within(plain: Tokenizer) -> Tokenizer | None:
    """A tokenizer that spells what stands within a text, where the first word of one is marked."""
    from tokenizers import Tokenizer

    whole = orjson.loads(plain.to_str())
    if not _unmarked(whole["pre_tokenizer"]):
        return None
    within = Tokenizer.from_str(orjson.dumps(whole).decode())
    within.encode_special_tokens = True
    return within


def _unmarked(part: Any) -> bool:
    """Whether a part of a tokenizer marked the first word; it does so no longer."""
    if not isinstance(part, dict):
        return False
    if part["type"] == "Sequence":
        found = [_unmarked(one) for one in part["pretokenizers"]]
        return any(found)
    marks = part["type"] == "Metaspace" and part.get("prepend_scheme") == "first"
    if marks:
        part["prepend_scheme"] = "never"
    return marks


def _controls(token: Any) -> bool:
    """Whether an added token is more than a word that was added to the vocabulary."""
    content = token.content.strip()
    return bool(content) and (token.special or not content.isalnum())


def _in_front(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts before every text."""
    whole, text = (
        tokenizer("a", add_special_tokens=special).input_ids for special in (True, False)
    )
    ends = range(len(whole) - len(text) + 1)
    start = next((at for at in ends if whole[at : at + len(text)] == text), 0)
    return tuple(whole[:start])


def _context(config: Any) -> int | None:
    """How many tokens a model reads, by the name that its configuration has for it."""
    for name in ("max_position_embeddings", "max_seq_len"):
        if isinstance(most := getattr(config, name, None), int) and most > 0:
            return most
    return None


def _line_ends(tokens: dict[str, int], ends: Sequence[int]) -> tuple[int, ...]:
    """The tokens that end a score line: all that begin with a newline, and the ends of text."""
    newlines = (token_id for token, token_id in tokens.items() if token[:1] in "Ċ\n" and token)
    byte = tokens.get("<0x0A>")
    return tuple(sorted({*newlines, *ends, *(() if byte is None else (byte,))}))


# of a base's folder, what the tokenizer is read from; copied, so that it stays as it is
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def copy_tokenizer(files: ModelFiles, folder: Path) -> None:
    """Into the folder of a model that was made of this one."""
    if files.gguf is None:
        for name in _TOKENIZER_FILES:
            if (files.folder / name).is_file():
                shutil.copyfile(files.folder / name, folder / name)
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.folder, gguf_file=files.gguf)
    tokenizer.save_pretrained(folder)


def _chat_wrap(
    name: str, tokenizer: Any, plain: Tokenizer, within: Tokenizer | None
) -> Callable[[str], ChatWrap]:
    """What a tokenizer's chat template puts around a user's text, behind a system prompt."""

    def wrap(system: str) -> ChatWrap:
        texts = _around(name, tokenizer, 1, system)
        before, after = (with_controls(plain, text) for text in texts)
        lead, trail = str(before.pop()), str(after.pop(0))
        tail = str(after[-1]) if after else trail
        begins = [spelled(part, plain) for part in before[:1]]
        begins += [spelled(part, within or plain) for part in before[1:]]
        ends = [spelled(part, within or plain) for part in after]
        return ChatWrap(sum(begins, ()), lead, trail, sum(ends, ()), tail)

    def spelled(part: str | tuple[int, ...], by: Tokenizer) -> tuple[int, ...]:
        if isinstance(part, tuple):
            return part
        return tuple(by.encode(part, add_special_tokens=False).ids)

    return wrap


def _applied(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Without a thinking mode, where a template has one: the line follows at once."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return str(text)
