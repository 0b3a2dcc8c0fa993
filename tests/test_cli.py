"""The command as people and scripts use it: files, pipes, exit codes, words."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Jlm, pair, read_rows, write_rows

from jlm_cli import cli_options, report, wording

RECORD_KEYS = [
    "id", "line", "mode", "scores", "verdict", "p", "expected", "text", "reason",
    "flags", "prompt_tokens", "gold", "sample",
]  # fmt: skip
LINE = re.compile(r"(10|[1-9](\.5)?) (10|[1-9](\.5)?)")


def test_records_and_summary(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n, gold="1", models=["a", "b"]) for n in range(30)]
    write_rows(tmp_path / "in.jsonl", rows)
    done = jlm("judge", "in.jsonl")
    assert (done.code, done.out) == (0, "")
    records = read_rows(tmp_path / "in.judge.jsonl")
    assert [record["id"] for record in records] == list(range(30))
    for record in records:
        assert list(record) == RECORD_KEYS
        assert LINE.fullmatch(record["text"])
        first, second = record["scores"]
        wanted = "1" if first > second else "2" if second > first else "tie"
        assert record["verdict"] == wanted
        assert sum(record["p"].values()) == pytest.approx(1, abs=1e-5)
    summary = json.loads((tmp_path / "in.judge.metrics.json").read_text())
    assert (summary["n_input"], summary["n_judged"], summary["n_error"]) == (30, 30, 0)
    assert summary["objective"]["n"] == 30 and summary["model"] == "fake"
    assert list(tmp_path.iterdir()) and not list(tmp_path.glob("*.partial"))


def test_swap_is_in_the_inputs_numbering(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n) for n in range(20)]
    write_rows(tmp_path / "in.jsonl", rows)
    turned = [{**row, "answers": row["answers"][::-1]} for row in rows]
    write_rows(tmp_path / "turned.jsonl", turned)
    assert jlm("judge", "in.jsonl", "--swap").code == 0
    assert jlm("judge", "turned.jsonl").code == 0
    both = read_rows(tmp_path / "in.judge.jsonl")
    turned = read_rows(tmp_path / "turned.judge.jsonl")
    other = {"1": "2", "2": "1", "tie": "tie"}
    for record, alone in zip(both, turned, strict=True):
        swapped = record["swapped"]
        assert swapped["text"] == alone["text"]
        assert swapped["scores"] == alone["scores"][::-1]
        assert swapped["verdict"] == other[alone["verdict"]]
        assert swapped["p"]["1"] == alone["p"]["2"]
        assert record["consistent"] == (record["verdict"] == swapped["verdict"])
        conflict = record["verdict"] != swapped["verdict"]
        assert record["combined"]["verdict"] == ("tie" if conflict else record["verdict"])


def test_pipe(jlm: Jlm) -> None:
    rows = "".join(json.dumps(pair(n)) + "\n" for n in range(5))
    done = jlm("judge", "-", "-o", "-", stdin=rows)
    assert done.code == 0
    assert [json.loads(line)["id"] for line in done.out.splitlines()] == list(range(5))
    assert jlm("judge", "-", stdin=rows).out == done.out
    assert jlm("judge", "/dev/stdin", stdin=rows).out == done.out  # as of <(…), it is no name


def test_bad_lines_among_good_ones(tmp_path: Path, jlm: Jlm) -> None:
    """20 malformed lines among 80 good ones: 80 judged, 20 errors that name line and field."""
    bad = [
        ("{", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"question": "Q"}', "field answers is missing"),
        ('{"answers": ["a", "b"]}', "field question is missing"),
        ('{"question": null, "answers": ["a", "b"]}', "field question: null"),
        ('{"question": "Q", "answers": ["a"]}', "field answers: judge takes two answers"),
        ('{"question": "Q", "answers": ["a", 5]}', "field answers[1]: a number"),
        ('{"question": "Q", "answers": [NaN, "b"]}', "not JSON"),
        ('"text"', "not a JSON object"),
        ('{"question": "Q", "answers": ["a", "b"], "gold": {}}', "field gold: an object"),
    ] * 2
    good = [json.dumps(pair(n)) for n in range(80)]
    lines, where = list(good), []
    for n, (text, words) in enumerate(bad):
        lines.insert(n * 4 + 3, text)
        where.append((n * 4 + 4, words))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = jlm("judge", "in.jsonl")
    assert done.code == 3
    records = read_rows(tmp_path / "in.judge.jsonl")
    errors = [record for record in records if "error" in record]
    assert (len(records), len(errors)) == (100, 20)
    for record, (line, words) in zip(errors, where, strict=True):
        assert list(record) == ["id", "line", "mode", "error"] and record["line"] == line
        assert record["error"]["message"].startswith(f"in.jsonl:{line}: ")
        assert words in record["error"]["message"]
    strict = jlm("judge", "in.jsonl", "--strict", "--overwrite")
    assert strict.code == 2
    assert strict.err.strip().splitlines()[-1].startswith("jlm: in.jsonl:4: not JSON")


def test_same_bytes_each_time(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(40)])
    first = jlm("judge", "in.jsonl", "-o", "-", "--swap", "--reason")
    assert first.out == jlm("judge", "in.jsonl", "-o", "-", "--swap", "--reason").out
    records = [json.loads(line) for line in first.out.splitlines()]
    assert all(record["reason"].startswith("Fake reason") for record in records)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf%s", b"\n\n%s\n\n", b"%s", b"%s\r\n"],
    ids=["bom", "blank", "no final newline", "crlf"],
)
def test_odd_files_are_read(tmp_path: Path, jlm: Jlm, content: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(content % json.dumps(pair("ü\u2028")).encode())
    assert jlm("judge", "in.jsonl").code == 0
    (record,) = read_rows_binary(tmp_path / "in.judge.jsonl")
    assert record["id"] == "ü\u2028"
    assert record["line"] == (3 if content.startswith(b"\n") else 1)


def read_rows_binary(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_gzip_and_json_lists(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(1), pair(2)]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    assert jlm("judge", "in.jsonl.gz").code == 0
    assert jlm("judge", "list.json").code == 0
    zipped = (tmp_path / "in.judge.jsonl").read_text()
    assert zipped == (tmp_path / "list.judge.jsonl").read_text()


def test_no_rows(tmp_path: Path, jlm: Jlm) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n")
    assert jlm("judge", "in.jsonl").code == 0
    assert (tmp_path / "in.judge.jsonl").read_text() == ""
    summary = json.loads((tmp_path / "in.judge.metrics.json").read_text())
    assert (summary["n_input"], summary["n_blank"]) == (0, 2)


def test_compact_has_the_same_figures(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(n, gold="2") for n in range(9)])
    whole = json.loads(jlm("judge", "in.jsonl", "--json", "-o", "a.jsonl").out)
    compact = json.loads(jlm("judge", "in.jsonl", "--json", "-o", "b.jsonl", "--compact").out)
    assert "sample" not in read_rows(tmp_path / "b.jsonl")[0]
    for summary in (whole, compact):
        del summary["seconds"], summary["items_per_second"]
    assert whole.pop("made_with") == {**compact.pop("made_with"), "compact": False}
    assert whole == compact


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing.jsonl",), "missing.jsonl: cannot be read: No such file"),
        ((".",), ".: is a folder"),
        (("in.jsonl", "-o", "in.jsonl"), "in.jsonl: is the input"),
        (("in.jsonl", "-o", "there.jsonl"), "there.jsonl: exists; use --overwrite"),
        (("in.jsonl", "-o", "sub"), "sub: is a folder"),
        (("in.jsonl", "-o", "none/out.jsonl"), "there is no folder none"),
        (("in.jsonl", "-o", "-", "--json"), "--json and -o -"),
        (("in.jsonl", "--map", "question"), "--map question: write it as NATIVE=FIELD"),
        (("in.jsonl", "--schema", "nope"), "--schema nope: there are auto, native"),
        (("in.jsonl", "--template", "nope"), "--template nope: not found"),
        (("in.jsonl", "-m", "no/such/model/here"), "no such file or folder"),
        (("in.jsonl", "-m", "sub"), "neither a .gguf file nor a folder with config.json"),
        (("utf16.jsonl",), "utf16.jsonl: this is UTF-16"),
        (("odd.jsonl",), "odd.jsonl:1: no schema fits the fields a"),
        (("in.jsonl", "--gold", "odd.jsonl"), "odd.jsonl:1: field id"),
        (("in.jsonl", "--reference", "nope.jsonl"), "nope.jsonl: cannot be read"),
        (("in.jsonl", "--reference", "a", "--no-reference"), "exclude each other"),
        (("in.jsonl", "in.jsonl"), "in.jsonl: the same input is named twice"),
        (("in.jsonl", "odd.jsonl"), "in.jsonl: does not hold one model's answers; known are"),
        (("in.jsonl", "-o", "out.jsonl.gz"), "out.jsonl.gz: results are not compressed"),
        (("-Q", b"\xff", "-A", "So.", "-A", "No."), "an option is not UTF-8 text: '\\udcff'"),
        (("in.jsonl", "--aspect", b"\xff: x"), "an option is not UTF-8 text"),
        (("-Q", "", "-A", "So.", "-A", "No."), "-Q is empty"),
        ((), "give either input files (- is standard input) or a question"),
        (("in.jsonl", "--aspects-together"), "--aspects-together needs aspects"),
        (("in.jsonl", "-o", "."), ".: is a folder"),
        (("in.jsonl", "-o", "-", "--retry-errors"), "--retry-errors needs the output of before"),
        (("-Q", "Why?", "-A", "So.", "-A", "No.", "-o", "q.jsonl"), "-Q prints what it judged"),
        (("-Q", "Why?", "-A", "So.", "-A", "No.", "--map", "question=q"), "--map is for files"),
        (("in.jsonl", "--schema", "pandalm", "--map", "category="), "leave out --schema"),
        (("in.jsonl", "-"), "-: standard input cannot be one of several inputs"),
        (("in.jsonl", "--max-length", "9" * 20), f"--max-length {'9' * 20}: is too large"),
    ],
)
def test_mistakes_get_one_line(
    tmp_path: Path, jlm: Jlm, words: tuple[str | bytes, ...], message: str
) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    (tmp_path / "there.jsonl").write_text("old")
    (tmp_path / "sub").mkdir()
    (tmp_path / "utf16.jsonl").write_text("{}", encoding="utf-16")
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    done = jlm("judge", *words)
    assert done.code == 2, done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("jlm: ") and message in last
    assert "Traceback" not in done.err
    assert (tmp_path / "there.jsonl").read_text() == "old"


def test_without_network_the_way_out_is_named(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    closed = {"JLM_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    for model in ("tiny", "BAAI/JudgeLM-7B-v1.0@main"):
        done = jlm("judge", "in.jsonl", "-m", model, env=closed)
        assert done.code == 2
        assert "without network, give a model's folder or .gguf file with --model PATH" in done.err
        assert "Traceback" not in done.err
    assert not list((tmp_path / "cache").glob("tiny-base*[!k]"))


def test_closed_pipe_is_quiet(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(3000)])
    command = f"{sys.executable} -m jlm_cli judge {rows} -m fake -o - -q | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=tmp_path)
    assert json.loads(done.stdout)["id"] == 0
    assert done.stderr == b""


def test_help_is_light() -> None:
    """No torch, no transformers for --help."""
    code = (
        "import sys; sys.argv = ['jlm', 'judge', '--help']\n"
        "from jlm_cli.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_and_readme_name_the_same_options(jlm: Jlm) -> None:
    env = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    commands = ("judge", "grade", "rank")
    texts = [jlm(command, "--help", env=env).out for command in commands]
    shown = set(re.findall(r"--[a-z][a-z-]+", "".join(texts)))
    readme = (ROOT / "README.md").read_text()
    table = readme.split("## Options", 1)[1].split("\n## ", 1)[0]
    assert shown - {"--help"} == set(re.findall(r"--[a-z][a-z-]+", table))


def test_shells_complete_names(tmp_path: Path) -> None:
    def completed(*words: str) -> list[str]:
        line = " ".join(("jlm", *words))
        asked = {
            "_JLM_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words)),
        }
        code = "import sys; sys.argv = ['jlm']; from jlm_cli import cli; cli.main()"
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**os.environ, **asked}, capture_output=True, text=True, cwd=tmp_path
        )
        return done.stdout.split()

    assert completed("judge", "x", "--template", "pan") == ["pandalm", "pandalm-input"]
    assert completed("train", "x", "--schema", "n") == ["native", "native-answer"]
    assert completed("metrics", "x", "--protocol", "r") == ["rewardbench", "rank"]
    assert completed("rank", "-m", "./mo") == []  # the shell's own: files
    assert completed("judge", "x", "--swa") == ["--swap"]


def test_options_name_what_there_is() -> None:
    from jlm_cli.measuring.protocols import PAIRS
    from jlm_cli.measuring.record_protocols import RECORDS
    from jlm_cli.reading.schemas import SCHEMAS

    assert tuple(schema.name for schema in SCHEMAS) == cli_options.SCHEMAS
    assert set(PAIRS | RECORDS) == set(cli_options.PROTOCOLS)


def test_version(jlm: Jlm) -> None:
    done = jlm("--version")
    assert re.fullmatch(r"jlm \d+\.\d+\.\d+\n", done.out)


def test_escapes_are_shown_harmlessly(tmp_path: Path, jlm: Jlm) -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07 [bold]not markup[/bold] \u202eback"
    write_rows(tmp_path / "in.jsonl", [{**pair(hostile), "question": hostile}])
    done = jlm("judge", "in.jsonl")
    assert done.code == 0
    assert "\x1b" not in done.err and "\u202e" not in done.err
    assert "[bold]" in done.err


def test_package_data_is_found(tmp_path: Path) -> None:
    """A built wheel holds the prompts, and finds them without the checkout."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), "."]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
        "import zipfile, pathlib, tempfile\n"
        f"site = tempfile.mkdtemp(); zipfile.ZipFile({str(wheel)!r}).extractall(site)\n"
        "sys.path.insert(0, site)\n"
        "from jlm_cli import prompts\n"
        "assert str(prompts.folder()).startswith(site), prompts.folder()\n"
        "assert 'judgelm' in prompts.names(); prompts.load('judgelm')"
    )
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr.decode()


def test_help_and_readme_name_the_same_options_of_metrics(jlm: Jlm) -> None:
    env = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    shown = set(re.findall(r"--[a-z][a-z-]+", jlm("metrics", "--help", env=env).out))
    section = (ROOT / "README.md").read_text().split("## Measure", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"--[a-z][a-z-]+", section)) | {"--quiet", "--help"}
    assert shown == named - {"--compact"}


def test_a_log_shows_that_a_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole lines, and nothing that only a terminal understands."""
    monkeypatch.setattr(report, "_LOGGED_EACH", 0)
    with report.Report().bar(3) as bar:
        for _ in range(3):
            bar.update(1)
    with report.Report(quiet=True).bar(3) as bar:
        bar.update(1)
    monkeypatch.setattr(report, "_LOGGED_EACH", 60)
    with report.Report().bar(3) as bar:
        for _ in range(50):  # tokens of reasons
            report.TokenCount(bar).add(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(re.match(r"jlm: \d of 3 rows; .*to go$", line) for line in lines), lines


@pytest.mark.parametrize(
    "command", ["judge", "grade", "rank", "chat", "metrics", "train", "data", "adapter", "probe"]
)
def test_help_names_every_option_on_a_narrow_terminal(jlm: Jlm, command: str) -> None:
    told = jlm(command, "--help", env={"COLUMNS": "80"}).out
    named = set(re.findall(r"--[a-z][a-z-]+", jlm(command, "--help", env={"COLUMNS": "300"}).out))
    assert len(named) > 3 and all(name in told for name in named), named


def test_a_likelier_verdict_is_told_beside_that_of_the_line() -> None:
    record = {
        "mode": "judge",
        "scores": [9.0, 2.0],
        "verdict": "1",
        "p": {"1": 0.44, "2": 0.51, "tie": 0.05},
        "flags": [],
    }
    assert wording.spoken(record) == "answer 1 (scores 9 2, p 0.44; answer 2 0.51)\n"
    sure = {**record, "p": {"1": 0.9, "2": 0.1, "tie": 0.0}}
    assert wording.spoken(sure) == "answer 1 (scores 9 2, p 0.90)\n"


def test_a_slip_of_the_pen_is_told_of_before_what_stands_in_the_way(
    tmp_path: Path, jlm: Jlm
) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    assert jlm("judge", "in.jsonl").code == 0
    for words, message in (
        (("--template", "judgelmm"), "--template judgelmm: not found"),
        (("--schema", "natve"), "--schema natve: there are"),
        (("--map", "qestion=q"), "--map qestion=…: no such native field"),
        ((), "exists; use --overwrite"),
    ):
        done = jlm("judge", "in.jsonl", *words)
        assert done.code == 2 and message in done.err.splitlines()[-1]


@pytest.mark.parametrize("columns", ["10", "28", "37"])
def test_tables_of_terminals_too_narrow_for_them(tmp_path: Path, columns: str) -> None:
    """And say what they can."""
    name = "an id of some size"
    for question, code in ((None, 3), ("Why?", 0)):
        write_rows(tmp_path / "in.jsonl", [{**pair(name), "question": question}])
        done = subprocess.run(
            [sys.executable, "-m", "jlm_cli", "judge", "in.jsonl", "-o", f"{code}.jsonl"],
            cwd=tmp_path,
            env={**os.environ, "JLM_MODEL": "fake", "COLUMNS": columns},
            capture_output=True,
        )
        assert done.returncode == code, done.stderr.decode()


def test_questions_make_way_for_verdicts_on_a_narrow_terminal(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair("an id of some size", question="What is the capital?")])
    shown = {
        columns: jlm("judge", "in.jsonl", "--swap", "--overwrite", env={"COLUMNS": columns}).err
        for columns in ("60", "90")
    }
    assert "What is" in shown["90"] and "What is" not in shown["60"]
    for text in shown.values():
        assert re.search(r"answer [12] |tie ", text)


def test_the_first_error_of_each_kind_is_told_whole(tmp_path: Path, jlm: Jlm) -> None:
    rows = [{"id": n, "question": "Q", "answer": "A"} for n in range(3)]
    write_rows(tmp_path / "in.jsonl", rows)
    done = jlm("grade", "in.jsonl", env={"COLUMNS": "80"})
    told = [line for line in done.err.splitlines() if line.startswith("jlm: missing-reference: ")]
    assert len(told) == 1 and told[0].endswith("or use --no-reference")
