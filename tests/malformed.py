"""Malformed and odd inputs, by name: the bytes, and how many rows they hold (None: refused whole).

`GOOD` rows stand around what is odd, so that a fixture also shows that neighbours are judged.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from typing import Any

GOOD = {"id": "good", "question": "Why?", "answers": ["Yes.", "No."]}


def line(**more: Any) -> bytes:
    return json.dumps({**GOOD, **more}).encode() + b"\n"


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode() + b"\n"


def _zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # of no time, some of which would hold a newline


def raw(text: str) -> bytes:
    return text.encode() + b"\n"


GOOD_LINE = line()
HUGE = "9" * 5000
FIELD = '{"id": 1, "question": "Q", "answers": ["a", "b"], "gold": %s}'
# one odd line between two good ones: (bytes, error code or None where it is judged)
ODD_LINES: dict[str, tuple[bytes, str | None]] = {
    "not json": (b"hello\n", "bad-json"),
    "half an object": (b'{"id": 1, "question"\n', "bad-json"),
    "two objects": (GOOD_LINE.strip() + GOOD_LINE, "bad-json"),
    "single quotes": (b"{'id': 1}\n", "bad-json"),
    "trailing comma": (b'{"id": 1,}\n', "bad-json"),
    "comment": (b"// a comment\n", "bad-json"),
    "number": (b"5\n", "bad-type"),
    "null": (b"null\n", "bad-type"),
    "bool": (b"true\n", "bad-type"),
    "text": (b'"text"\n', "bad-type"),
    "list": (b"[1, 2]\n", "bad-type"),
    "empty list": (b"[]\n", "bad-type"),
    "empty object": (b"{}\n", "missing-field"),
    "no question": (without("question"), "missing-field"),
    "no answers": (without("answers"), "missing-field"),
    "no id": (without("id"), None),
    "question null": (line(question=None), "bad-type"),
    "question number": (line(question=5), "bad-type"),
    "question bool": (line(question=True), "bad-type"),
    "question list": (line(question=["Q"]), "bad-type"),
    "question object": (line(question={"text": "Q"}), "bad-type"),
    "question empty": (line(question=""), None),
    "answers null": (line(answers=None), "bad-type"),
    "answers text": (line(answers="ab"), "bad-type"),
    "answers number": (line(answers=2), "bad-type"),
    "answers object": (line(answers={"1": "a", "2": "b"}), "bad-type"),
    "answers of null": (line(answers=["a", None]), "bad-type"),
    "answers of number": (line(answers=[1, "b"]), "bad-type"),
    "answers of bool": (line(answers=["a", False]), "bad-type"),
    "answers of lists": (line(answers=[["a"], "b"]), "bad-type"),
    "no answer": (line(answers=[]), "n-answers"),
    "one answer": (line(answers=["a"]), "n-answers"),
    "three answers": (line(answers=["a", "b", "c"]), "n-answers"),
    "forty answers": (line(answers=["a"] * 40), "n-answers"),
    "empty answers": (line(answers=["", ""]), None),
    "blank answers": (line(answers=[" \n", "\t"]), None),
    "reference number": (line(reference=4), "bad-type"),
    "reference list": (line(reference=["R", "S"]), None),
    "reference list of numbers": (line(reference=["R", 4]), "bad-type"),
    "reference null": (line(reference=None), None),
    "reference empty": (line(reference=""), None),
    "gold number": (line(gold=3), "bad-type"),
    "gold 1": (line(gold=1), None),
    "gold in Arena's words": (line(gold="model_b"), None),
    "gold bool": (line(gold=True), "bad-type"),
    "gold object": (line(gold={}), "bad-type"),
    "gold of texts": (line(gold=["1", "2"]), "bad-type"),
    "gold too long": (line(gold=[1, 2, 3]), "bad-value"),
    "gold out of range": (line(gold=[11, -1]), "bad-value"),
    "gold unknown word": (line(gold="both"), None),
    "gold NaN": (raw(FIELD % "NaN"), "bad-json"),
    "gold Infinity": (raw(FIELD % "Infinity"), "bad-json"),
    "gold 1e999": (raw(FIELD % "[1e999, 1]"), "bad-json"),
    "models text": (line(models="m"), "bad-value"),
    "models too few": (line(models=["m"]), "bad-value"),
    "models of numbers": (line(models=[1, 2]), "bad-type"),
    "category number": (line(category=3), "bad-type"),
    "id null": (line(id=None), None),
    "id bool": (line(id=True), "bad-type"),
    "id list": (line(id=[1]), "bad-type"),
    "id object": (line(id={"a": 1}), "bad-type"),
    "id float": (line(id=1.5), None),
    "id negative": (line(id=-7), None),
    "id empty": (line(id=""), None),
    "id over 64 bits": (line(id=10**29), "bad-value"),
    "id of 5,000 digits": (line(id=HUGE).replace(b'"9', b"9").replace(b'9"', b"9"), "bad-json"),
    "id 1e400": (line(id=HUGE).replace(b'"' + HUGE.encode() + b'"', b"1e400"), "bad-json"),
    "id minus zero": (line(id=-0.0), None),
    "deep list": (raw(FIELD % ("[" * 100_000 + "]" * 100_000)), "bad-json"),
    "deep object": (raw(FIELD % ('{"a":' * 5000 + "1" + "}" * 5000)), "bad-json"),
    "fairly deep": (raw(FIELD % ("[" * 200 + "]" * 200)), "bad-type"),
    "duplicate keys": (GOOD_LINE.replace(b"{", b'{"question": "A", '), None),
    "extra fields": (line(extra={"a": [1, {"b": None}]}), None),
    "bad utf-8": (GOOD_LINE.replace(b"Yes", b"\xff\xfe"), "bad-json"),
    "cut utf-8": (GOOD_LINE.replace(b"Yes", "é".encode()[:1]), "bad-json"),
    "overlong utf-8": (GOOD_LINE.replace(b"Yes", b"\xc0\xaf"), "bad-json"),
    "surrogate in utf-8": (GOOD_LINE.replace(b"Yes", b"\xed\xa0\x80"), "bad-json"),
    "latin-1": (GOOD_LINE.replace(b"Yes", "é".encode("latin-1")), "bad-json"),
    "lone surrogate": (GOOD_LINE.replace(b"Yes", b"\\ud800"), "bad-json"),
    "surrogates reversed": (GOOD_LINE.replace(b"Yes", b"\\udc00\\ud800"), "bad-json"),
    "surrogate pair": (GOOD_LINE.replace(b"Yes", b"\\ud83d\\ude00"), None),
    "bad escape": (GOOD_LINE.replace(b"Yes", b"\\x41"), "bad-json"),
    "escaped NUL": (GOOD_LINE.replace(b"Yes", b"\\u0000"), None),
    "raw NUL": (GOOD_LINE.replace(b"Yes", b"\0"), "bad-json"),
    "raw tab": (GOOD_LINE.replace(b"Yes", b"\t"), "bad-json"),
    "raw escape": (GOOD_LINE.replace(b"Yes", b"\x1b[31m"), "bad-json"),
    "NULs alone": (b"\0" * 50 + b"\n", "bad-json"),
    "U+2028 in a text": (GOOD_LINE.replace(b"Yes", "\u2028".encode()), None),
    "U+0085 in a text": (GOOD_LINE.replace(b"Yes", "\u0085".encode()), None),
    "noncharacter": (GOOD_LINE.replace(b"Yes", "\uffff".encode()), None),
    "carriage return at the end": (GOOD_LINE.replace(b"\n", b"\r\n"), None),
    "carriage return inside": (GOOD_LINE.replace(b", ", b",\r"), None),
    "BOM in the middle": (b"\xef\xbb\xbf" + GOOD_LINE, "bad-json"),
    "spaces around": (b"  \t" + GOOD_LINE[:-1] + b"  \n", None),
    "format fields": (line(answers=["{question} {0.__class__} $answer", "%s %n {{}}"]), None),
    "one megabyte": (line(answers=["a" * 1_000_000, "b"]), None),
    "hundred thousand keys": (line(**{f"k{n}": n for n in range(100_000)}), None),
}

# whole files: (bytes, exit code, records)
THREE = GOOD_LINE * 3
FILES: dict[str, tuple[bytes, int, int]] = {
    "empty": (b"", 0, 0),
    "one newline": (b"\n", 0, 0),
    "blank lines": (b"\n \n" + GOOD_LINE + b"\n\t\n" + GOOD_LINE + b"\n", 0, 2),
    "no final newline": (THREE[:-1], 0, 3),
    "BOM": (b"\xef\xbb\xbf" + THREE, 0, 3),
    "BOM alone": (b"\xef\xbb\xbf", 0, 0),
    "CRLF": (THREE.replace(b"\n", b"\r\n"), 0, 3),
    "lone CR": (THREE.replace(b"\n", b"\r"), 3, 1),
    "UTF-16 with BOM": (THREE.decode().encode("utf-16"), 2, 0),
    "UTF-16 without BOM": (THREE.decode().encode("utf-16-le"), 3, 4),
    "UTF-32": (THREE.decode().encode("utf-32"), 2, 0),
    "duplicate ids": (THREE, 0, 3),
    "1 beside '1'": (line(id=1) + line(id="1"), 0, 2),
    "JSON list": (b"[" + b",".join([GOOD_LINE.strip()] * 3) + b"]", 0, 3),
    "JSON list over lines": (b"[\n" + b",\n".join([GOOD_LINE.strip()] * 3) + b"\n]\n", 0, 3),
    "JSON list with oddities": (b'[1, null, "x", ' + GOOD_LINE.strip() + b"]", 3, 4),
    "JSON list of lines, with NaN": (
        b"[\n" + b",\n".join([line(s=1.5), GOOD_LINE]).replace(b"1.5", b"NaN") + b"]",
        2,
        0,
    ),
    "JSON list of lines, cut short": (b"[\n" + GOOD_LINE.strip() + b",\n" + GOOD_LINE[:40], 2, 0),
    "a first line in brackets": (b"[INFO] beginning\n" + THREE, 3, 4),
    "JSON list cut short": (b"[" + GOOD_LINE.strip() + b",\n", 2, 0),
    "JSON list with NaN": (b"[" + GOOD_LINE.strip() + b', {"s": NaN}]', 2, 0),
    "empty JSON list": (b"[]", 0, 0),
    "one JSON object over lines": (json.dumps(GOOD, indent=1).encode(), 3, 8),
    "gzip": (_zipped(THREE), 0, 3),
    "gzip twice": (_zipped(_zipped(THREE)), 3, 1),
    "gzip of two members": (_zipped(THREE) + _zipped(THREE), 0, 6),
    "gzip cut short": (_zipped(THREE)[:-9], 2, 0),
    "gzip damaged": (_zipped(THREE)[:30] + b"xxxx" + _zipped(THREE)[34:], 2, 0),
    "gzip broken inside": (
        _zipped(THREE)[:12] + b"\xff\xff" + _zipped(THREE)[14:],
        2,
        0,
    ),
    "gzip of nothing": (gzip.compress(b""), 0, 0),
    "gzip head alone": (b"\x1f\x8b", 2, 0),
    "binary": (bytes(range(256)) * 4, 3, 5),
    "zip": (b"PK\x03\x04" + bytes(100), 2, 0),
    "xz": (lzma.compress(THREE), 2, 0),
    "bzip2": (bz2.compress(THREE), 2, 0),
    "Parquet": (b"PAR1" + bytes(100), 2, 0),
    "csv": (b"id,question\n1,Q\n", 3, 2),
    "no schema": (b'{"foo": 1}\n', 2, 0),
    "one model's answers": (b'{"instruction": "a", "output": "b", "generator": "c"}\n', 2, 0),
    "all rows bad": (b"x\n" * 5, 3, 5),
}
