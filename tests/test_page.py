"""The report: one file, hostile text stays text, what is odd comes first."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from conftest import Jlm, write_rows

HOSTILE = [
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "<svg onload=alert(1)>",
    "</style><style>body { display: none }</style>",
    "{0.__class__} %s {title} $& \\u003cb\\u003e",
    "javascript:alert(1)",
    "\u202egnp.exe\u2066 \x00 \x1b[31mred",
    "\" onmouseover=\"document.title = 'owned'",
    "-->]]><!--",
]


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def judged(n: int, odd: bool = False) -> dict[str, Any]:
    verdict, other = "1", "2" if odd else "1"
    text = HOSTILE[n % len(HOSTILE)]
    p = {"1": 0.4, "2": 0.35, "tie": 0.25} if odd else {"1": 0.9, "2": 0.05, "tie": 0.05}
    said = {"scores": [8.0, 5.0], "p": p, "expected": [7.5, 5.5], "text": "8 5", "reason": text}
    combined = verdict if verdict == other else "tie"
    return {
        "id": f"{text} {n}",
        "line": n + 1,
        "mode": "judge",
        **said,
        "verdict": verdict,
        "swapped": {**said, "verdict": other},
        "consistent": verdict == other,
        "combined": {"verdict": combined, "p": p, "expected": [7.5, 5.5]},
        "flags": [f"injection:{text}"] if odd else [],
        "prompt_tokens": 9,
        "gold": "2" if odd else "1",
        "sample": {
            "question": f"Question {n}: {text}",
            "answers": [text * 3, f"plain answer {n}"],
            "reference": text,
            "models": [text, f"model {n % 3}"],
            "category": text,
        },
    }


@pytest.fixture
def report(tmp_path: Path, jlm: Jlm) -> Path:
    rows = [judged(n, odd=n in (17, 31, 44)) for n in range(60)]
    rows.append(
        {"id": "x", "line": 61, "mode": "judge", "error": {"code": "nan", "message": HOSTILE[0]}}
    )
    write_rows(tmp_path / "<b>run.judge.jsonl", rows)
    done = jlm("metrics", "<b>run.judge.jsonl", "--html", "report.html")
    assert done.code == 0 and ": 1 failed rows hold no gold" in done.err
    return tmp_path / "report.html"


class Page(HTMLParser):
    """Tags with their attributes, and the text of each row of judgments."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_one_file_in_which_hostile_text_is_text(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == names.count("style") == 1
    assert "img" not in names and "iframe" not in names and "link" not in names
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert not re.search(r"(?i)(src|href)=.?https?:|@import|url\((?!#)", text)
    shown = "".join(page.words)
    for hostile in HOSTILE[:6]:
        assert hostile in shown
    assert not set("\u202e\u2066\x00\x1b") & set(text)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[^']+'$", policy)


def test_the_odd_come_first(report: Path) -> None:
    page = Page(report.read_text())
    rows = [attrs for tag, attrs in page.tags if tag == "tbody" and "data-why" in attrs]
    assert len(rows) == 61
    assert rows[0]["data-why"] == "against gold|inconsistent|flagged|low confidence"
    first = [str(row["data-id"]).rsplit(" ", 1)[-1] for row in rows[:3]]
    assert first == ["17", "31", "44"]
    assert rows[3]["data-why"] == "failed" and rows[4]["data-why"] == ""


def test_same_bytes(tmp_path: Path, report: Path, jlm: Jlm) -> None:
    assert jlm("metrics", "<b>run.judge.jsonl", "--html", "again.html").code == 0
    assert (tmp_path / "again.html").read_bytes() == report.read_bytes()


def test_a_large_run_is_bounded(tmp_path: Path, jlm: Jlm) -> None:
    rows = [judged(n) for n in range(1200)]
    for row in rows:
        row["sample"]["answers"][0] = "x" * 20_000
    write_rows(tmp_path / "run.jsonl", rows)
    assert jlm("metrics", "run.jsonl", "--html", "report.html").code == 0
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 10_000_000
    assert "The 500 most suspicious of the 1,200 judgments" in text
    assert "(cut; 20,000 characters in all)" in text


@pytest.mark.parametrize("protocol", ["judgelm", "pandalm"])
def test_two_judges_and_protocols(tmp_path: Path, jlm: Jlm, protocol: str) -> None:
    write_rows(tmp_path / "a.jsonl", [judged(n) for n in range(30)])
    odd = [{**judged(n, odd=n == 7), "gold": judged(n)["gold"]} for n in range(30)]
    write_rows(tmp_path / "b.jsonl", odd)
    words = ["metrics", "a.jsonl", "b.jsonl", "--protocol", protocol, "--html", "report.html"]
    done = jlm(*words)
    assert (done.code, done.err) == (0, "")
    rows = [a for tag, a in Page((tmp_path / "report.html").read_text()).tags if "data-why" in a]
    assert "judges differ" in str(rows[0]["data-why"])


@pytest.mark.browser
class TestBrowser:
    """In a real Chromium: pytest -m browser."""

    def test_nothing_runs_and_nothing_is_fetched(self, report: Path, tmp_path: Path) -> None:
        with Browser(tmp_path / "profile") as browser:
            browser.open(report)
            browser.eval("for (const one of document.querySelectorAll('details')) one.open = true")
            browser.eval("for (const b of document.querySelectorAll('tbody button')) b.click()")
            assert browser.problems() == []
            assert browser.eval("document.title") == "<b>run: judgments"
            assert browser.eval("document.querySelectorAll('script').length") == 1
            answers = browser.eval(
                "[...document.querySelectorAll('.text')].some((one) => one.children.length)"
            )
            assert answers is False

    def test_five_suspicious_judgments_by_keyboard(self, report: Path, tmp_path: Path) -> None:
        focused = "document.activeElement.closest('tbody')?.dataset.why"
        with Browser(tmp_path / "profile") as browser:
            browser.look(1280, 900)
            browser.open(report)
            for _ in range(2):
                browser.press("j")
            browser.press("Enter")
            assert browser.eval(focused) == "against gold|inconsistent|flagged|low confidence"
            assert browser.eval("document.activeElement.getAttribute('aria-expanded')") == "true"
            shown = "getComputedStyle(document.querySelector('.open .more')).display"
            assert browser.eval(shown) == "table-row"
            browser.press("k")
            assert browser.eval("document.activeElement.closest('tbody').dataset.rank") == "1"
            browser.press("/")
            browser.type("question 44:")
            assert browser.eval("document.getElementById('found').textContent") == "1 of 1 shown"
            browser.press("Enter")
            assert browser.eval("document.activeElement.closest('tbody').dataset.rank") == "3"

    def test_sorting_and_filters(self, report: Path, tmp_path: Path) -> None:
        first = "document.querySelector('#rows tbody:not([hidden])').dataset"
        with Browser(tmp_path / "profile") as browser:
            browser.open(report)
            found = "document.getElementById('found').textContent"
            assert browser.eval(found) == "25 of 61 shown"
            browser.eval("document.getElementById('more').click()")
            assert browser.eval(found) == "50 of 61 shown"
            heads = "document.querySelectorAll('#rows thead button')"
            browser.eval(f"{heads}[5].click()")  # p, the least first
            assert browser.eval(f"{first}.p") == "0.25"
            assert browser.eval("document.querySelectorAll('[aria-sort]').length") == 1
            browser.eval(f"{heads}[5].click()")
            assert browser.eval(f"{first}.p") == "0.90"
            browser.eval("document.querySelector('input[value=failed]').click()")
            assert browser.eval(found) == "1 of 1 shown"
            assert browser.eval(f"{first}.why") == "failed"

    def test_light_dark_phone_and_print(self, report: Path, tmp_path: Path) -> None:
        colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body)"
        with Browser(tmp_path / "profile") as browser:
            browser.open(report)
            browser.look(1280, 900)
            assert browser.eval(f"{colours}.backgroundColor][1]") == "rgb(255, 255, 255)"
            browser.look(1280, 900, dark=True)
            assert browser.eval(f"{colours}.backgroundColor][1]") == "rgb(20, 23, 28)"
            browser.look(1280, 900, dark=True, media="print")
            assert browser.eval(f"{colours}.backgroundColor][1]") == "rgb(255, 255, 255)"
            hidden = "getComputedStyle(document.getElementById('controls')).display"
            assert browser.eval(hidden) == "none"
            for width in (320, 390, 768):
                browser.look(width, 800)
                browser.eval("for (const b of document.querySelectorAll('tbody button')) b.click()")
                assert browser.eval("document.documentElement.scrollWidth") <= width
            browser.screenshot(tmp_path / "phone.png")
            assert (tmp_path / "phone.png").stat().st_size > 5000
