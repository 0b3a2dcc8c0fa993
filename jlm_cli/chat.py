"""`jlm chat`: a conversation about one judgment, on a terminal or through a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.text import Text

from jlm_cli import devices, loading, models, signals, vocabularies
from jlm_cli.case import Case, RecordChoice, card, case_of, other_settings
from jlm_cli.config import Config
from jlm_cli.conversation import Layout, Opening, Turn
from jlm_cli.encoding import Encoder, Lines
from jlm_cli.engine import Judge
from jlm_cli.errors import EXIT_OK, JlmError, RowError, UsageError
from jlm_cli.files import write_whole
from jlm_cli.modes import Mode, arranged, mode_of, record_of
from jlm_cli.records import TURNED, Sample, dump_indented
from jlm_cli.report import Report
from jlm_cli.screen import Screen
from jlm_cli.terminal import escaped

_BRIEF = 240  # characters of an answer shown before a conversation; /show shows all


class Quit(Exception):
    """The user has had enough."""


class Chat:
    """A conversation: what it is about, what was said, and the judge that speaks."""

    def __init__(self, judge: Judge, mode: Mode, config: Config, layout: Layout) -> None:
        self.judge = judge
        self.mode = mode
        self.config = config
        self.layout = layout
        self.vocabulary = judge.lines.vocabulary
        self.screen = Screen(tuple(COMMANDS))
        self.turns: list[Turn] = []
        self._dropped = 0  # of the oldest turns, that the model no longer sees
        self._draws = 0

    def open(self, case: Case) -> None:
        """Begin anew with a judgment. Raises RowError where it leaves no room to talk."""
        taken = len(self.vocabulary.locate(case.said).ids)
        config, context = self.config, self.layout.context
        if context is not None:  # the prompt leaves a quarter of it to talk in
            config = replace(config, max_length=max(1, context - context // 4 - taken))
        view, prompt, flags = Encoder(self.judge.lines, self.mode, config).text(case.sample)
        judgment = self.vocabulary.neutralised(case.judgment(view.template))
        self.case, self.opening = case, Opening(prompt, judgment, view.template.chat_system)
        self.turns, self._dropped, self._draws = [], 0, 0
        if changed := [flag for flag in flags if not flag.startswith("injection:")]:
            self.screen.note(f"changed before the model reads it: {', '.join(changed)}")
        if forged := [flag for flag in flags if flag.startswith("injection:")]:
            self.screen.note(f"the model reads it as it is: {', '.join(forged)}")

    def judged(self, sample: Sample) -> Case:
        """The sample judged now. Raises RowError."""
        (prompts,) = Encoder(self.judge.lines, self.mode, self.config).encode([sample])
        if isinstance(prompts, RowError):
            raise prompts
        results = self.judge.judge(prompts)
        return Case(record_of(self.mode, self.config.command, sample, results), sample)

    def converse(self) -> None:
        """Take lines until there are no more."""
        while True:
            try:
                if (line := self.screen.ask("> ")) is None:
                    return
                if line.strip():
                    self.take(line)
            except Quit:
                return
            except JlmError as error:
                if not self.screen.interactive:
                    raise
                self.screen.note(str(error))
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    raise
                signals.unwind()
                self.screen.break_line()
                self.screen.hint("Ctrl-D or /quit ends the conversation")

    def take(self, line: str) -> None:
        """A command, or a message to the judge. Raises Quit and JlmError."""
        if not line.startswith("/"):
            self.reply(line.strip())
            return
        word, _, rest = line.partition(" ")
        command = COMMANDS.get(word)
        if command is None:
            raise UsageError(f"{word}: no command; /help names them, a space before it sends it")
        if rest.strip() and not command.argument:
            raise UsageError(f"{word} takes nothing behind it")
        if command.argument and not rest.strip():
            raise UsageError(f"write it as {word} {command.argument}")
        command.act(self, rest.strip())

    def reply(self, message: str) -> None:
        words = self.vocabulary.neutralised(message)
        if words != message:
            self.screen.note("your message spelled a control token; it was broken up")
        self._answer(words, self.turns, draw=0)

    def retry(self) -> None:
        if not self.turns:
            raise UsageError("/retry: nothing has been answered yet")
        self._answer(self.turns[-1].message, self.turns[:-1], draw=self._draws + 1)

    def _answer(self, message: str, before: list[Turn], draw: int) -> None:
        """Stream a reply; what a person stops counts as said up to there."""
        context, most = self.layout.context, self.config.max_new_tokens
        room = most if context is None else min(most, context // 8)
        known = min(self._dropped, len(before))
        ids, more = self.layout.fit(self.opening, before[known:], message, room)
        if more:
            self.screen.note(f"too long by now: the oldest turns were dropped, {more} of them")
        limit = most if context is None else min(most, context - len(ids))
        reply: list[int] = []
        stopped = self._stream(ids, limit, draw, reply)
        if not reply and stopped:
            return
        self.turns = [*before, Turn(message, tuple(reply))]
        self._dropped, self._draws = known + more, draw
        if len(reply) == limit and not stopped:
            self.screen.note(f"cut after {limit} tokens")

    def _stream(self, ids: list[int], limit: int, draw: int, reply: list[int]) -> bool:
        """Show what the model writes and gather its ids; whether it was stopped."""
        spell = self.vocabulary.speller()

        def pieces() -> Iterator[str]:
            for token in self.judge.engine.stream(ids, limit, draw):
                reply.append(token)
                yield spell(token)

        try:
            self.screen.stream(pieces())
        except KeyboardInterrupt:
            if not self.screen.interactive:
                raise
            signals.unwind()
            self.screen.hint("stopped")
            return True
        except MemoryError:
            n = len(ids) + len(reply)
            raise UsageError(f"memory ran out at {n} tokens; use a lower --max-length") from None
        return False

    def show(self) -> None:
        self.screen.show(card(self.case))

    def swap(self) -> None:
        if len(self.case.sample.answers) != 2:
            raise UsageError("/swap: there is one answer")
        case = self.judged(arranged(self.case.sample, (2, 1)))
        same = TURNED[self.case.record["verdict"]] == case.record["verdict"]
        outcome = "consistent" if same else "not consistent, the order made the difference"
        self._go_on_with(case, f"The answers have changed places: {outcome}.")

    def refer(self, reference: str) -> None:
        if not any(template.needs_reference for template in self.mode.templates):
            names = ", ".join(dict.fromkeys(one.name for one in self.mode.templates))
            raise UsageError(f"/reference: template {names} shows none")
        case = self.judged(replace(self.case.sample, reference=reference))
        self._go_on_with(case, "The answers were judged against the reference.")

    def _go_on_with(self, case: Case, remark: str) -> None:
        talked = bool(self.turns)
        self.open(case)
        self.screen.show(card(case, _BRIEF).append(f"\n{remark}"))
        if talked:
            self.screen.hint("the conversation begins anew")

    def save(self, name: str) -> None:
        try:
            path = Path(name).expanduser()
            if path.exists():
                raise UsageError(f"{path}: exists; name another file")
            packed = self._as_json() if path.suffix == ".json" else self._as_text()
            write_whole(path, iter([packed]))
        except (OSError, RuntimeError, ValueError) as error:  # of a home, of a name with a NUL
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{escaped(name)}: cannot be written: {why}") from error
        self.screen.note(f"saved in {path}")

    def _said(self) -> list[tuple[str, str]]:
        decode = self.vocabulary.decode
        return [(turn.message, decode(turn.reply).strip()) for turn in self.turns]

    def _as_json(self) -> bytes:
        turns = [{"message": message, "reply": reply} for message, reply in self._said()]
        saved = {"model": self.config.model, "record": self.case.record, "turns": turns}
        return dump_indented(saved)

    def _as_text(self) -> bytes:
        said = [escaped(f"> {message}\n{reply}\n") for message, reply in self._said()]
        return "\n".join([f"{card(self.case)}\n", *said]).encode()

    def help(self) -> None:
        lines = [
            f"{f'{name} {command.argument}'.strip():<16}  {command.help}"
            for name, command in COMMANDS.items()
        ]
        lines.append("Anything else is a message; a space before a / makes it one.")
        lines.append("Ctrl-C stops a reply, Ctrl-D ends the conversation.")
        self.screen.show(Text("\n".join(lines)))

    def quit(self) -> None:
        raise Quit


@dataclass(frozen=True)
class Command:
    """What a word with a slash does; `argument` names what stands behind it."""

    act: Callable[[Chat, str], None]
    help: str
    argument: str = ""


COMMANDS = {
    "/help": Command(lambda chat, _: chat.help(), "show these lines"),
    "/show": Command(lambda chat, _: chat.show(), "show the question, the answers, the verdict"),
    "/swap": Command(lambda chat, _: chat.swap(), "judge anew with the answers in other order"),
    "/reference": Command(Chat.refer, "judge anew against a reference answer", "TEXT"),
    "/save": Command(Chat.save, "write the conversation: JSON for .json, else text", "FILE"),
    "/retry": Command(lambda chat, _: chat.retry(), "another reply to the last message"),
    "/quit": Command(lambda chat, _: chat.quit(), "end the conversation"),
}


def talk(config: Config, choice: RecordChoice | None) -> int:
    """Open a conversation about a chosen record, or a question typed in; the exit status.

    Raises JlmError.
    """
    case = None
    if choice is not None:
        record = choice.find()
        config = replace(config, command=record["mode"])
        case = case_of(record, config)
        config = replace(config, use_reference=case.sample.reference is not None)
    mode_of(config)  # as preflight.open_run does
    report = Report()
    files = models.find(config.model, report.note)
    mode = mode_of(config, files.template)
    compute = devices.choose_compute(files, config, writes=True)
    vocabulary = vocabularies.load_vocabulary(files)
    layout = Layout(vocabulary, vocabularies.chat_layout(files), vocabulary.room(config.max_length))
    report.note(f"model {files.name} on {compute.device} in {compute.dtype}")
    if choice is not None:
        template = " | ".join(dict.fromkeys(one.name for one in mode.templates))
        for other in other_settings(choice.judged, files.name, template):
            report.note(other)
    engine = loading.load_engine(files, vocabulary, compute)
    judge = Judge(engine, Lines(vocabulary), reason=False, new_tokens=config.max_new_tokens)
    chat = Chat(judge, mode, config, layout)
    if files.untrained and chat.screen.interactive:
        report.untrained(files.name)
    if case is None:
        sample = _typed(chat.screen)
        if sample is None:
            return EXIT_OK
        chat.open(chat.judged(sample))
        chat.screen.show(card(chat.case, _BRIEF))
    else:
        chat.open(case)
        chat.screen.present(card(case, _BRIEF))
    chat.screen.hint("ask about it; /help names the commands, Ctrl-D ends")
    chat.converse()
    return EXIT_OK


def _typed(screen: Screen) -> Sample | None:
    """A sample from lines: question, two answers, and a reference or nothing.

    None where a person has ended it. Raises UsageError where a pipe ended before.
    """
    lines: list[str] = []
    for name in ("Question", "Answer 1", "Answer 2", "Reference (or nothing)"):
        line = screen.ask(f"{name}: ")
        if line is None and screen.interactive:
            return None
        if line is None and len(lines) < 3:
            raise UsageError("standard input ended before there was a question with two answers")
        lines.append((line or "").strip())
    question, first, second, reference = lines
    return Sample(None, 1, question, (first, second), reference or None)
