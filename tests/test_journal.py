"""Journal, resuming, and what a resumption refuses."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import Jlm, pair, read_rows, write_rows
from filelock import FileLock

from jlm_cli import prompts
from jlm_cli.errors import UsageError
from jlm_cli.journal import Journal

FACTS = {"model": "m", "input": "abc"}
RECORDS = [(n, json.dumps({"id": n, "text": "ü\t" * n}).encode()) for n in (4, 0, 3, 1, 2)]


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def filled(folder: Path) -> bytes:
    """A journal of two parts; the bytes of the first, which holds two batches."""
    folder.mkdir()
    first, second = Journal(folder), Journal(folder, rank=1)
    first.begin(FACTS)
    first.append(RECORDS[:2])
    second.append(RECORDS[2:3])
    first.append(RECORDS[3:])
    first.close()
    second.close()
    return (folder / "part-0").read_bytes()


def test_records_come_in_input_order(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    assert list(journal.records()) == [record + b"\n" for _, record in sorted(RECORDS)]
    assert journal.n_records() == 5
    journal.remove()
    assert not (tmp_path / "j").exists()


def test_a_row_that_was_judged_twice_stands_in_the_output_once(tmp_path: Path) -> None:
    """A worker of an earlier run, suspended until now, may still write what it was judging."""
    filled(tmp_path / "j")
    late = Journal(tmp_path / "j", rank=2)
    late.append(RECORDS[2:4])
    late.close()
    journal = Journal(tmp_path / "j")
    assert list(journal.records()) == [record + b"\n" for _, record in sorted(RECORDS)]
    assert journal.n_records() == 5


def test_a_worker_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    journal = Journal(tmp_path / "j", rank=1)
    Journal(tmp_path / "j").begin({"swap": True, "batch_tokens": 5})
    journal.check({"swap": True, "batch_tokens": 9}, but=["batch_tokens"])
    with pytest.raises(UsageError, match="part-1: has another swap than the first worker"):
        journal.check({"swap": False, "batch_tokens": 9}, but=["batch_tokens"])


def test_a_worker_that_is_late_does_not_write_into_another_run(tmp_path: Path) -> None:
    """Suspended before its first batch, while --overwrite began anew with another model."""
    (tmp_path / "j").mkdir()
    Journal(tmp_path / "j").begin(FACTS)
    late = Journal(tmp_path / "j", rank=1)
    late.check(FACTS, but=())
    other = Journal(tmp_path / "j")
    other.begin({**FACTS, "model": "another"}, discard=True)
    with pytest.raises(UsageError, match="another run has begun there"):
        late.append(RECORDS[:2])
    assert other.n_records() == 0 and not (tmp_path / "j" / "part-1").exists()


def test_side_files_from_pipes_are_told_apart(tmp_path: Path, jlm: Jlm) -> None:
    """A pipe can be read once; what was read of it says which references a run was begun with."""
    pipe = tmp_path / "refs"
    os.mkfifo(pipe)
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(3)])
    found = []
    for text in ("one", "two"):
        lines = "".join(json.dumps({"id": n, "reference": text}) + "\n" for n in range(3))
        writer = threading.Thread(target=pipe.write_text, args=(lines,))
        writer.start()
        done = jlm("judge", "in.jsonl", "--reference", "refs", "-o", f"{text}.jsonl", "-q")
        writer.join()
        assert done.code == 0
        found.append(json.loads((tmp_path / f"{text}.metrics.json").read_text())["made_with"])
    assert found[0]["reference"] != found[1]["reference"]


def test_cut_at_every_byte_of_the_last_batch(tmp_path: Path) -> None:
    """What was committed before the cut is there, what was not is gone, and nothing breaks."""
    whole = filled(tmp_path / "j")
    part = tmp_path / "j" / "part-0"
    first_batch = whole.index(b"#\t2\n") + 4
    for length in range(first_batch, len(whole) + 1):
        for tail in (b"", b"\0" * 4096):
            part.write_bytes(whole[:length] + tail)
            done = Journal(tmp_path / "j").begin(FACTS)
            kept = {0, 1, 2, 3, 4} if length == len(whole) else {0, 3, 4}
            assert set(done.tolist()) == kept, length
            assert part.read_bytes() == (whole if length == len(whole) else whole[:first_batch])


def test_damage_in_the_middle_is_refused_by_name(tmp_path: Path) -> None:
    whole = filled(tmp_path / "j")
    part = tmp_path / "j" / "part-0"
    draw = random.Random(0)
    before_last_commit = whole.rindex(b"#")
    for _ in range(200):
        place = draw.randrange(before_last_commit - 1)  # a lost commit is a torn tail
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        part.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"part-0:[0-9]+: damaged"):
            Journal(tmp_path / "j").begin(FACTS)


def test_another_run_is_refused_by_the_name_of_what_differs(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with pytest.raises(UsageError, match=r'another input \("abc", now "xyz"\)'):
        Journal(tmp_path / "j").begin({**FACTS, "input": "xyz"})
    assert len(Journal(tmp_path / "j").begin({**FACTS, "input": "xyz"}, discard=True)) == 0


def killed_at(place: str, folder: Path, *words: str) -> None:
    """`jlm judge in.jsonl` that dies where a function of the command is called."""
    code = (
        "import os, sys; from jlm_cli import cli, resuming, runner\n"
        f"{place} = lambda *_: os._exit(9)\n"
        "sys.argv = ['jlm', 'judge', 'in.jsonl', '-m', 'fake', *sys.argv[1:]]; cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code, *words], cwd=folder).returncode == 9


@pytest.fixture
def begun(tmp_path: Path, jlm: Jlm) -> Path:
    """A run of three rows that was ended by a bad plan file before it judged."""
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(3)])
    write_rows(tmp_path / "refs.jsonl", [{"id": n, "reference": "R"} for n in range(3)])
    folder = tmp_path / "in.judge.jsonl.partial"
    folder.mkdir()
    (folder / "plan.tmp.npz").mkdir()  # in the way of the plan
    assert jlm("judge", "in.jsonl").code == 1
    (folder / "plan.tmp.npz").rmdir()
    return folder


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--swap",), "swap"),
        (("--reason",), "reason"),
        (("--max-length", "1500"), "max_length"),
        (("--batch-tokens", "99"), "batch_tokens"),
        (("--reference", "refs.jsonl"), "reference"),
        (("--limit", "2"), "limit"),
        (("--compact",), "compact"),
    ],
)
def test_changed_settings_are_refused(
    begun: Path, jlm: Jlm, words: tuple[str, ...], name: str
) -> None:
    done = jlm("judge", "in.jsonl", *words)
    assert done.code == 2
    assert f"was begun with another {name} (" in done.err
    assert jlm("judge", "in.jsonl", *words, "--overwrite").code == 0


@pytest.mark.parametrize("more", [[], ["--retry-errors"]])
def test_a_killed_run_goes_on_with_other_rows(tmp_path: Path, jlm: Jlm, more: list[str]) -> None:
    """With --retry-errors, also where it is killed again before it has taken over what was done."""
    rows = [pair(n) for n in range(6)]
    write_rows(tmp_path / "in.jsonl", rows)
    words = ("judge", "in.jsonl", "-o", "out.jsonl")
    assert jlm(*words).code == 0
    fresh = (tmp_path / "out.jsonl").read_bytes().splitlines()
    facts = json.loads((tmp_path / "out.metrics.json").read_text())["made_with"]
    for name in ("out.jsonl", "out.metrics.json"):
        (tmp_path / name).unlink()
    killed = Journal(tmp_path / "out.jsonl.partial")
    killed.folder.mkdir()
    killed.begin(facts)
    killed.append([(n, fresh[n]) for n in (0, 2, 5)])
    killed.close()
    write_rows(tmp_path / "in.jsonl", [pair("new"), *rows[::-1]])
    done = jlm(*words)
    assert done.code == 2 and "or use --retry-errors to keep what is done of rows" in done.err
    killed_at("resuming._keep", tmp_path, "-o", "out.jsonl", "--retry-errors")
    assert jlm(*words, "--retry-errors", "--swap").code == 2  # which leaves all as it is
    assert jlm(*words, "--limit", "3").code == 2
    done = jlm(*words, *more)
    assert done.code == 0 and "going on: 3 of 7 rows are done" in done.err, done.err
    found: list[Any] = read_rows(tmp_path / "out.jsonl")
    again = [{**json.loads(fresh[n]), "line": 7 - n} for n in (5, 2, 0)]
    assert [found[1], found[4], found[6]] == again
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_errors_alone_replace_no_output(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(4)])
    assert jlm("judge", "in.jsonl", "-q").code == 0
    good = (tmp_path / "in.judge.jsonl").read_bytes()
    words = ("judge", "in.jsonl", "--map", "question=typo", "--overwrite")
    done = jlm(*words)
    assert done.code == 2 and done.err.endswith("\n")
    told = "no row can be judged, and in.judge.jsonl is left as it is: in.jsonl:1: field typo"
    assert told in done.err and (tmp_path / "in.judge.jsonl").read_bytes() == good
    assert not list(tmp_path.glob("*.partial"))
    assert jlm(*words, "-o", "new.jsonl").code == 3  # where there is nothing to lose
    write_rows(tmp_path / "in.jsonl", [{**pair(n), "answers": ["one"]} for n in range(4)])
    done = jlm("judge", "in.jsonl", "--retry-errors", "--overwrite")
    assert done.code == 2 and "in.judge.jsonl is left as it is" in done.err
    assert (tmp_path / "in.judge.jsonl").read_bytes() == good


def test_errors_alone_cost_a_killed_run_nothing(begun: Path, jlm: Jlm) -> None:
    there = sorted((path.name, path.stat().st_size) for path in begun.iterdir())
    done = jlm("judge", "in.jsonl", "--map", "question=typo", "--overwrite")
    assert done.code == 2 and "no row can be judged" in done.err
    assert [one for one in there if one[0].startswith("part")] == sorted(
        (path.name, path.stat().st_size) for path in begun.glob("part*")
    )


def test_what_overwrite_gives_up_is_said(begun: Path, jlm: Jlm) -> None:
    before = Journal(begun)
    before.append([(0, b'{"id":1}'), (1, b'{"id":2}')])
    before.close()
    told = "2 rows that another run had judged in in.judge.jsonl.partial are given up"
    assert told in jlm("judge", "in.jsonl", "--overwrite", "--swap").err


def test_changed_template_is_refused(begun: Path, tmp_path: Path, jlm: Jlm) -> None:
    text = (prompts.folder() / "judgelm.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("helpful and precise", "precise"))
    done = jlm("judge", "in.jsonl", "--template", "mine.toml")
    assert done.code == 2 and "was begun with another template (" in done.err


def test_changed_input_is_refused(begun: Path, tmp_path: Path, jlm: Jlm) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(pair(9)) + "\n")
    done = jlm("judge", "in.jsonl")
    assert done.code == 2 and "was begun with another input (" in done.err
    assert re.search(r"--overwrite to begin anew, without the \d+ rows that are done", done.err)


def test_two_runs_at_once(begun: Path, jlm: Jlm) -> None:
    with FileLock(begun / "lock"):
        done = jlm("judge", "in.jsonl")
    assert done.code == 2 and "another run is writing there" in done.err
    assert jlm("judge", "in.jsonl").code == 0


def test_an_output_that_came_in_the_meantime_stays(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    late = (
        "import sys; from pathlib import Path; from jlm_cli import cli, runner\n"
        "opened = runner.open_run\n"
        "def open_run(*given):\n"
        "    Path('in.judge.jsonl').write_text('theirs')\n"
        "    return opened(*given)\n"
        "runner.open_run = open_run\n"
        "sys.argv = ['jlm', 'judge', 'in.jsonl', '-m', 'fake', '-q']; cli.main()"
    )
    command = [sys.executable, "-c", late]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "in.judge.jsonl: exists; use --overwrite" in done.stderr
    assert (tmp_path / "in.judge.jsonl").read_text() == "theirs"


def test_retry_errors(tmp_path: Path, jlm: Jlm) -> None:
    """Rows whose reference was missing are judged again, the others stay as they are."""
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(20)])
    some = [{"id": n, "reference": f"R{n}"} for n in range(20)]
    write_rows(tmp_path / "refs.jsonl", some[5:])
    words = ("judge", "in.jsonl", "--reference", "refs.jsonl", "-q")
    assert jlm(*words, "--retry-errors").code == 2
    assert jlm(*words).code == 3
    before: list[Any] = read_rows(tmp_path / "in.judge.jsonl")
    write_rows(tmp_path / "refs.jsonl", some)
    assert jlm(*words, "--retry-errors").code == 0
    after = read_rows(tmp_path / "in.judge.jsonl")
    assert after[5:] == before[5:]
    assert all("error" in record for record in before[:5])
    assert all("error" not in record for record in after)
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(19)])
    done = jlm(*words, "--retry-errors")
    assert done.code == 2 and "no longer has the rows of 1 of its judgments" in done.err


def test_retrying_with_other_settings(tmp_path: Path, jlm: Jlm) -> None:
    """Refused by name; one file holds what one judge said in one way."""
    write_rows(tmp_path / "in.jsonl", [pair(1), {"id": 2, "question": "Q"}])
    assert jlm("judge", "in.jsonl", "-q").code == 3
    for words, name in ((("--swap",), "swap"), (("--template", "judgelm-brief"), "template")):
        done = jlm("judge", "in.jsonl", "-q", "--retry-errors", *words)
        assert done.code == 2 and f"was made with another {name};" in done.err
    done = jlm("grade", "in.jsonl", "-o", "in.judge.jsonl", "-q", "--retry-errors")
    assert done.code == 2 and "was made with another command;" in done.err
    assert not (tmp_path / "in.judge.jsonl.partial").exists()


def test_retrying_that_was_killed_early_keeps_the_good_rows(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [*(pair(n) for n in range(5)), {"id": 6, "question": "Q"}])
    assert jlm("judge", "in.jsonl", "-q").code == 3
    before = (tmp_path / "in.judge.jsonl").read_bytes()
    killed_at("resuming._keep", tmp_path, "-q", "--retry-errors")
    done = jlm("judge", "in.jsonl", "--retry-errors")
    assert done.code == 3 and "going on: 5 of 6 rows are done" in done.err
    assert (tmp_path / "in.judge.jsonl").read_bytes() == before


def test_retrying_judges_again_what_has_changed(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n) for n in range(4)]
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("judge", "in.jsonl", "-q").code == 0
    before = read_rows(tmp_path / "in.judge.jsonl")
    rows[1]["question"], rows[2]["gold"] = "Another?", "2"
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("judge", "in.jsonl", "-q", "--retry-errors").code == 0
    after: list[Any] = read_rows(tmp_path / "in.judge.jsonl")
    assert [after[n] == before[n] for n in range(4)] == [True, False, False, True]
    assert (after[1]["sample"]["question"], after[2]["gold"]) == ("Another?", "2")


def test_retrying_needs_to_know_how_the_output_was_made(tmp_path: Path, jlm: Jlm) -> None:
    """Else rows of two models would stand under the name of one."""
    write_rows(tmp_path / "in.jsonl", [pair(1), pair(2), {"id": 3}])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q").code == 3
    (tmp_path / "out.metrics.json").unlink()
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q", "--retry-errors")
    assert done.code == 2 and "out.metrics.json: is not there, or no summary" in done.err


def test_retrying_counts_and_times_only_what_it_judged(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n) for n in range(40)]
    write_rows(tmp_path / "in.jsonl", [*rows, {"id": 40}])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q").code == 3
    write_rows(tmp_path / "in.jsonl", [*rows, pair(40)])
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q", "--retry-errors", "--json")
    found = json.loads(done.out)
    assert (found["n_judged"], found["n_error"]) == (41, 0)
    assert found["items_per_second"] * found["seconds"] == pytest.approx(1, abs=0.1)


def test_an_output_that_was_edited_is_not_gone_on_from(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1), pair(2)])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q").code == 0
    text = (tmp_path / "out.jsonl").read_text()
    (tmp_path / "out.jsonl").write_text(text.replace('"2":', '"3":', 1))
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q", "--retry-errors")
    assert done.code == 2 and "out.jsonl:1: is not a record of jlm" in done.err
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_mended_input_goes_on_after_strict_refused_it(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1), {"id": 2}])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q", "--strict").code == 2
    assert not (tmp_path / "out.jsonl.partial").exists()
    write_rows(tmp_path / "in.jsonl", [pair(1), pair(2)])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q", "--strict").code == 0


def test_plan_as_json(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1), {"id": 2, "question": "Q"}])
    done = jlm("judge", "in.jsonl", "--plan", "--json", "-q")
    found = json.loads(done.out)
    assert (done.code, done.err) == (3, "")  # as the run would end
    assert found["rows"] == 2 and found["errors"] == {"missing-field": 1} and "memory" in found


def test_plan_refuses_the_gpus_that_a_run_would(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    planned = jlm("judge", "in.jsonl", "--gpus", "999", "--plan")
    assert planned.code == jlm("judge", "in.jsonl", "--gpus", "999").code == 2
    assert "this run would be refused: --gpus 999: there are" in planned.err


def test_plan_tells_what_is_done(tmp_path: Path, jlm: Jlm) -> None:
    """Of a run that ended with a bad row in its journal."""
    write_rows(tmp_path / "in.jsonl", [pair(1), {"id": 2}, pair(3)])
    in_the_way = tmp_path / "in.judge.jsonl.partial" / "plan.tmp.npz"
    in_the_way.mkdir(parents=True)
    assert jlm("judge", "in.jsonl").code == 1
    anew = ("--overwrite",)  # of the same run, which goes on
    for words, done in (((), 1), (("--swap",), 0), (anew, 1), ((*anew, "--swap"), 0)):
        facts = json.loads(jlm("judge", "in.jsonl", "--plan", "--json", "-q", *words).out)
        assert facts["rows_done"] == done


def test_plan_tells_what_a_run_would_do_with_an_output(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1), {"id": 2}, pair(3)])
    assert jlm("judge", "in.jsonl", "-q").code == 3
    done = jlm("judge", "in.jsonl", "--plan", "--json")
    assert done.code == 2 and json.loads(done.out)["rows_done"] == 0
    assert "this run would be refused: in.judge.jsonl: exists; use --overwrite" in done.err
    again = ("judge", "in.jsonl", "--plan", "--json", "--retry-errors")
    done = jlm(*again)
    assert json.loads(done.out)["rows_done"] == 2 and "refused" not in done.err
    other = jlm(*again, "--swap")
    assert other.code == 2 and "would be refused: in.judge.jsonl: was made with an" in other.err
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    fewer = jlm(*again)
    assert fewer.code == 2 and "the input no longer has the rows of 1" in fewer.err


def test_plan_tells_that_nothing_would_be_replaced(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    assert jlm("judge", "in.jsonl", "-q").code == 0
    words = ("judge", "in.jsonl", "--map", "question=typo", "--overwrite")
    planned = jlm(*words, "--plan")
    assert planned.code == jlm(*words).code == 2
    assert "this run would be refused: no row can be judged, and in.judge.jsonl" in planned.err


def test_plan_counts_what_a_killed_run_has_done_of_other_rows(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n) for n in range(6)]
    write_rows(tmp_path / "in.jsonl", rows)
    killed_at("runner._sum_up", tmp_path, "-q")
    (tmp_path / "in.judge.jsonl").unlink()
    write_rows(tmp_path / "in.jsonl", [pair("new"), *rows[:4]])
    again = ("judge", "in.jsonl", "--retry-errors")
    gone = "in.judge.jsonl: the input no longer has the rows of 2 of its judgments (id '4' first)"
    for words in ((*again, "--plan"), again):
        refused = jlm(*words)
        assert refused.code == 2 and gone in refused.err
    swapped = jlm(*again, "--plan", "--swap")
    assert swapped.code == 2 and "was begun with another swap" in swapped.err
    planned = jlm(*again, "--overwrite", "--plan", "--json")
    assert planned.code == 0 and json.loads(planned.out)["rows_done"] == 4
    assert "going on: 4 of 5 rows are done" in jlm(*again, "--overwrite").err


def test_plan_writes_nothing(tmp_path: Path, jlm: Jlm) -> None:
    given = [pair(1), pair(1), {"question": "Q", "answers": ["a", "b"]}, {"question": "Q"}]
    write_rows(tmp_path / "in.jsonl", given)
    done = jlm("judge", "in.jsonl", "--plan")
    assert done.code == 3
    for name, value in (
        ("rows", 4),
        ("judgeable", 3),
        ("error missing-field", 1),
        ("rows without id", 1),
        ("rows with a double id", 1),
        ("batches", 1),
    ):
        assert any(line.split() == [*name.split(), str(value)] for line in done.err.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_rows_that_came_later_are_judged_alone(tmp_path: Path, jlm: Jlm) -> None:
    """Also where --limit is raised; what was judged stays as it is, to the byte."""
    rows = [pair(n) for n in range(6)]
    write_rows(tmp_path / "in.jsonl", rows[:4])
    words = ("judge", "in.jsonl", "-o", "out.jsonl")
    assert jlm(*words, "--limit", "2").code == 0
    first = (tmp_path / "out.jsonl").read_bytes()
    for more, n_done, n in ((["--limit", "3"], 2, 3), ([], 3, 4)):
        done = jlm(*words, "--retry-errors", *more)
        assert done.code == 0 and f"going on: {n_done} of {n} rows are done" in done.err
    write_rows(tmp_path / "in.jsonl", rows)
    done = jlm(*words, "--retry-errors")
    assert done.code == 0 and "going on: 4 of 6 rows are done" in done.err
    assert (tmp_path / "out.jsonl").read_bytes().startswith(first)
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == list(range(6))
    write_rows(tmp_path / "in.jsonl", rows[:3])
    done = jlm(*words, "--retry-errors")
    assert done.code == 2 and "no longer has the rows of 3 of its judgments" in done.err
    assert (tmp_path / "out.jsonl").read_bytes().startswith(first)


def test_rows_that_moved_keep_their_judgments(tmp_path: Path, jlm: Jlm) -> None:
    """New rows among them are judged alone; of two rows alike each keeps its own. Judgments of rows
    that are gone are not given up unasked."""
    rows = [pair(n) for n in range(9)]
    rows[3] = rows[6] = {**rows[3], "id": "twice"}
    write_rows(tmp_path / "in.jsonl", [*rows, {"id": 99}])
    words = ("judge", "in.jsonl", "-o", "out.jsonl")
    assert jlm(*words).code == 3
    before = read_rows(tmp_path / "out.jsonl")
    changed = {**rows[2], "question": "Another?"}
    order = [rows[8], pair("new"), rows[6], changed, rows[0], rows[1], *rows[3:6], rows[7]]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, order)))
    done = jlm(*words, "--retry-errors")
    assert done.code == 0 and "going on: 8 of 10 rows are done" in done.err, done.err
    old: list[Any] = [8, None, 6, None, 0, 1, 3, 4, 5, 7]
    for n, record in enumerate(read_rows(tmp_path / "out.jsonl")):
        if old[n] is not None:
            assert record == {**before[old[n]], "line": 1 + 2 * n}
    kept = (tmp_path / "out.jsonl").read_bytes()
    write_rows(tmp_path / "in.jsonl", order[2:])
    done = jlm(*words, "--retry-errors")
    assert done.code == 2 and "rows of 2 of its judgments (id '8' first)" in done.err
    assert (tmp_path / "out.jsonl").read_bytes() == kept
    assert "8 of 8 rows are done" in jlm(*words, "--retry-errors", "--overwrite").err
    write_rows(tmp_path / "in.jsonl", [{**row, "question": "Else?"} for row in order])
    done = jlm(*words, "--retry-errors")
    assert done.code == 2 and "the rows of all its 8 judgments have changed" in done.err
    assert jlm(*words, "--retry-errors", "--overwrite").code == 0


def test_compact_records_know_what_they_are_of(tmp_path: Path, jlm: Jlm) -> None:
    """Rows that are mended, new or changed are judged, though no sample stands in the output."""
    rows: list[Any] = [pair(0), {"id": 1}, pair(2), pair(3)]
    write_rows(tmp_path / "in.jsonl", rows)
    words = ("judge", "in.jsonl", "-o", "out.jsonl", "--compact")
    assert jlm(*words).code == 3
    before: list[Any] = read_rows(tmp_path / "out.jsonl")
    rows[1], rows[3] = pair(1), {**rows[3], "question": "Another?"}
    write_rows(tmp_path / "in.jsonl", [pair(4), *rows])
    done = jlm(*words, "--retry-errors")
    assert done.code == 0 and "going on: 2 of 5 rows are done" in done.err, done.err
    after = read_rows(tmp_path / "out.jsonl")
    assert [after[1], after[3]] == [{**before[n], "line": 2 + n} for n in (0, 2)]
    assert after[4] != {**before[3], "line": 5}


def test_no_judgment_is_given_up_unasked(tmp_path: Path, jlm: Jlm) -> None:
    """Of rows without ids, and of several rows of one id, as many are left as there were."""
    words = ("judge", "in.jsonl", "-o", "out.jsonl", "-q")
    for rows in (
        [{**pair(n), "id": None} for n in range(5)],
        [*({**pair(n), "id": "one"} for n in range(3)), {"id": "one"}, pair(9)],
    ):
        write_rows(tmp_path / "in.jsonl", rows)
        assert jlm(*words, "--overwrite").code in (0, 3)
        kept = (tmp_path / "out.jsonl").read_bytes()
        write_rows(tmp_path / "in.jsonl", rows[2:])
        done = jlm(*words, "--retry-errors")
        assert done.code == 2 and "of 2 of its judgments" in done.err, done.err
        assert (tmp_path / "out.jsonl").read_bytes() == kept
        assert jlm(*words, "--retry-errors", "--overwrite").code in (0, 3)


def test_a_row_that_broke_does_not_lose_its_judgment(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1), pair(2)])
    words = ("judge", "in.jsonl", "-o", "out.jsonl", "-q")
    assert jlm(*words).code == 0
    kept = (tmp_path / "out.jsonl").read_bytes()
    write_rows(tmp_path / "in.jsonl", [pair(1), {**pair(2), "gold": {"a": 1}}])
    done = jlm(*words, "--retry-errors")
    assert done.code == 2 and "the rows of 1 of its judgments (id '2' first)" in done.err
    assert (tmp_path / "out.jsonl").read_bytes() == kept


def test_gold_that_came_later_costs_no_judgment(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n) for n in range(4)]
    write_rows(tmp_path / "in.jsonl", rows)
    write_rows(tmp_path / "gold.jsonl", [{"id": n, "gold": "1"} for n in range(4)])
    words = ("judge", "in.jsonl", "-o", "out.jsonl")
    assert jlm(*words).code == 0
    before = read_rows(tmp_path / "out.jsonl")
    done = jlm(*words, "--retry-errors", "--gold", "gold.jsonl")
    assert done.code == 0 and "4 of 4 rows are done" in done.err and "agreement" in done.err
    assert read_rows(tmp_path / "out.jsonl") == [{**record, "gold": "1"} for record in before]


def test_a_file_with_the_summarys_name_is_kept(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    (tmp_path / "out.metrics.json").write_text('{"mine": 1}')
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 2
    assert done.err == (
        "jlm: out.metrics.json: exists, and is not a summary of jlm; choose another --output\n"
    )
    (tmp_path / "out.metrics.json").unlink()
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 0
    (tmp_path / "out.jsonl").unlink()  # its summary is ours to replace
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 0


@pytest.mark.parametrize(
    "text", ["junk\n", "{}\n", "[]\n", "5\n", "", '{"line": 7}\n', '{"line": 1}']
)
def test_retrying_what_is_no_output_of_this_input(tmp_path: Path, jlm: Jlm, text: str) -> None:
    """Refused in one line; and nothing is left behind that would let the next run replace it."""
    write_rows(tmp_path / "in.jsonl", [pair(1), pair(2)])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q").code == 0
    (tmp_path / "out.jsonl").write_text(text)
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q", "--retry-errors")
    assert done.code == 2 and done.err.startswith("jlm: out.jsonl"), done.err
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q")
    assert done.code == 2 and "exists; use --overwrite" in done.err
    assert (tmp_path / "out.jsonl").read_text() == text


def killed_run(tmp_path: Path, jlm: Jlm, *more: str) -> Path:
    """A run that ended with one of its rows in the journal."""
    write_rows(tmp_path / "in.jsonl", [pair(1), {"id": 2}, pair(3)])
    in_the_way = tmp_path / "out.jsonl.partial" / "plan.tmp.npz"
    in_the_way.mkdir(parents=True)
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", *more).code == 1
    in_the_way.rmdir()
    return in_the_way.parent


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_came_to_stand_there_is_not_replaced(
    tmp_path: Path, jlm: Jlm, there: bool
) -> None:
    """Neither a new one nor one that was changed, until it is moved away or given up."""
    words = ["judge", "in.jsonl", "-o", "out.jsonl"]
    output = tmp_path / "out.jsonl"
    if there:
        output.write_text("of another run\n")
    killed_run(tmp_path, jlm, "--overwrite")
    output.write_text("mine\n")
    done = jlm(*words)
    assert done.code == 2 and "out.jsonl: is not what it was when this run began" in done.err
    assert output.read_text() == "mine\n"
    output.rename(tmp_path / "elsewhere")
    assert jlm(*words).code == 3 and len(read_rows(output)) == 3


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    folder = tmp_path / "out.jsonl.partial"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 2 and "is not jlm's (notes.txt is in it)" in done.err
    assert (folder / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("about", [None, "[]", '""', "3", "null"])
def test_what_is_done_is_not_given_up_for_a_lost_name(
    tmp_path: Path, jlm: Jlm, about: str | None
) -> None:
    folder = killed_run(tmp_path, jlm)
    kept = (folder / "run.json").read_text()
    if about is None:
        (folder / "run.json").unlink()
    else:
        (folder / "run.json").write_text(about)
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 2 and done.err.count("\n") <= 2 and "begin anew" in done.err
    (folder / "run.json").write_text(kept)
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 3 and "going on: 1 of 3" in done.err


def test_parts_that_are_none(tmp_path: Path, jlm: Jlm) -> None:
    folder = killed_run(tmp_path, jlm)
    (folder / "part-9").mkdir()
    for more in ([], ["--overwrite", "--swap"]):
        done = jlm("judge", "in.jsonl", "-o", "out.jsonl", *more)
        assert done.code == 2 and "part-9: is not a file; remove" in done.err
    (folder / "part-9").rmdir()
    far = Journal(folder, 9)
    far.append([(99, b"{}")])
    far.close()
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 2 and "holds rows that there are none of" in done.err


def test_what_a_run_was_killed_at_clearing_away_is_cleared(tmp_path: Path, jlm: Jlm) -> None:
    folder = killed_run(tmp_path, jlm)
    (folder / "run.json").replace(folder / "done.json")
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 3 and "going on" not in done.err
    assert not folder.exists()


def test_a_pipe_is_not_shared_by_workers(tmp_path: Path, jlm: Jlm) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = jlm("judge", "pipe", "-o", "out.jsonl", "--workers", "2")
    assert done.code == 2 and "pipe: is not a file; several workers need one" in done.err


@pytest.mark.parametrize("name", ["x.metrics.json", f"{'x' * 236}.jsonl", "y" * 239])
def test_names_that_an_output_cannot_have(tmp_path: Path, jlm: Jlm, name: str) -> None:
    """Of a summary; or with no room for those of drafts beside it."""
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", "-o", name)
    assert done.code == 2 and ("name of a summary" in done.err or "name is too long" in done.err)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("words", [["-o", "-"], ["-o", "out.jsonl", "--json"]])
def test_a_closed_output_is_told_before_anything_is_judged(
    tmp_path: Path, words: list[str]
) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    command = [sys.executable, "-m", "jlm_cli", "judge", "in.jsonl", "-m", "fake", *words]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "jlm: standard output is closed\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_output_is_never_beside_another_one_s_summary(tmp_path: Path, jlm: Jlm) -> None:
    """Else --retry-errors would take judgments of another template for those of its own."""
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(6)])
    words = ("judge", "in.jsonl", "-o", "out.jsonl")
    brief = ("--template", "judgelm-brief", "--overwrite")
    assert jlm(*words).code == 0
    killed_at("runner._sum_up", tmp_path, "-o", "out.jsonl", *brief)
    assert not (tmp_path / "out.metrics.json").exists()
    done = jlm(*words, "--retry-errors", "--overwrite")
    assert "going on: 6 of 6" not in done.err
    assert jlm(*words, *brief).code == 0
    made = json.loads((tmp_path / "out.metrics.json").read_text())["made_with"]
    assert made["template"] != "judgelm"


def test_two_outputs_that_would_share_a_summary(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(3)])
    (tmp_path / "b").write_text("a file of some kind")
    assert jlm("judge", "in.jsonl", "-o", "b.jsonl").code == 0
    assert jlm("judge", "in.jsonl", "-o", "b.jsonl", "--overwrite").code == 0
    for first, second in (("a.jsonl", "a"), ("c", "c.jsonl")):
        assert jlm("judge", "in.jsonl", "-o", first).code == 0
        done = jlm("judge", "in.jsonl", "-o", second)
        assert done.code == 2 and f"is the summary of {first}; choose another --output" in done.err


def test_a_run_killed_at_its_summary_goes_on_with_more_rows(tmp_path: Path, jlm: Jlm) -> None:
    rows: list[Any] = [pair(n) for n in range(6)]
    write_rows(tmp_path / "in.jsonl", rows)
    killed_at("runner._sum_up", tmp_path, "-o", "out.jsonl")
    write_rows(tmp_path / "in.jsonl", [*rows, pair(7), pair(8)])
    words = ("judge", "in.jsonl", "-o", "out.jsonl")
    assert jlm(*words).code == 2
    done = jlm(*words, "--retry-errors")
    assert done.code == 0 and "going on: 6 of 8 rows are done" in done.err, done.err
    assert [record["id"] for record in read_rows(tmp_path / "out.jsonl")] == [*range(6), 7, 8]


def test_an_empty_input_replaces_no_output(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    assert jlm("judge", "in.jsonl").code == 0
    good = (tmp_path / "in.judge.jsonl").read_bytes()
    write_rows(tmp_path / "in.jsonl", [])
    done = jlm("judge", "in.jsonl", "--overwrite")
    assert done.code == 2 and "in.jsonl: has no rows, and in.judge.jsonl is left" in done.err
    assert (tmp_path / "in.judge.jsonl").read_bytes() == good


def test_a_draft_that_is_a_link_is_not_followed(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".out.jsonl.tmp").symlink_to("precious")
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "out.jsonl").is_symlink()


@pytest.mark.parametrize("made", ["me", 7, None, []])
def test_an_odd_summary_is_none_of_jlm(tmp_path: Path, jlm: Jlm, made: Any) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1), {"id": 2}])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 3
    (tmp_path / "out.metrics.json").write_text(json.dumps({"made_with": made}))
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl", "--retry-errors")
    assert done.code == 2 and "is not there, or no summary" in done.err


def test_a_run_killed_as_it_replaced_an_output_keeps_its_work(tmp_path: Path, jlm: Jlm) -> None:
    """Its summary is gone, the output is the old one, and the input changes once more."""
    rows: list[Any] = [pair(n) for n in range(5)]
    write_rows(tmp_path / "in.jsonl", [*rows, {"id": 5}])
    words = ("judge", "in.jsonl", "-o", "out.jsonl")
    assert jlm(*words).code == 3
    write_rows(tmp_path / "in.jsonl", [*rows, pair(5)])
    code = (
        "import os, sys; from pathlib import Path; from jlm_cli import cli; there = Path.replace\n"
        "def replace(draft, path):\n"
        "    os._exit(9) if Path(path).name == 'out.jsonl' else there(draft, path)\n"
        "Path.replace = replace\n"
        "sys.argv = ['jlm', 'judge', 'in.jsonl', '-o', 'out.jsonl', '-m', 'fake', "
        "'--retry-errors']; cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 9
    assert not (tmp_path / "out.metrics.json").exists()
    write_rows(tmp_path / "in.jsonl", [*rows, pair(5), pair(6)])
    done = jlm(*words, "--retry-errors")
    assert done.code == 0 and "going on: 6 of 7 rows are done" in done.err, done.err


def test_a_name_of_nothing_but_its_ending(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    assert jlm("judge", "in.jsonl", "-o", ".jsonl").code == 0
    assert len(read_rows(tmp_path / ".jsonl")) == 1
