"""A model from a hub, by the real client and a small hub of our own on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from jlm_cli.hub import wanted_files

COMMIT = "c0ffee" + "0" * 34
FILES = {
    ".gitattributes": b"",
    "README.md": b"A card.",
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights",
}


class Hub(BaseHTTPRequestHandler):
    """One model, o/judge."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/o/judge/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            return self._answer(FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        if path.startswith("/api/models/o/judge/tree/"):
            return self._tell([{"type": "file", "path": n, **_about(n)} for n in FILES])
        if path.startswith("/api/models/o/judge"):
            siblings = [{"rfilename": name, **_about(name)} for name in FILES]
            return self._tell({"id": "o/judge", "sha": COMMIT, "siblings": siblings})
        return self.send_error(404)

    def _tell(self, facts: Any) -> None:
        self._answer(json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _about(name: str) -> dict[str, Any]:
    return {"size": len(FILES[name]), "oid": name, "blobId": name}


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


ASK = """
import sys
from jlm_cli.errors import ModelError
from jlm_cli.hub import from_hub
try:
    print(from_hub("o/judge", sys.argv[1] or None, lambda note: print(note, file=sys.stderr)))
except ModelError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("revision", ["", COMMIT])
def test_what_was_fetched_needs_no_network(
    hub: ThreadingHTTPServer, tmp_path: Path, revision: str
) -> None:
    def ask(**env: str) -> subprocess.CompletedProcess[str]:
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
        own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
        own.pop("no_proxy", None)
        env = {**own, **quiet, "HF_HOME": str(tmp_path), **env}
        env.setdefault("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        words = [sys.executable, "-c", ASK, revision]
        return subprocess.run(words, env=env, capture_output=True, text=True)

    alone = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert "cannot be fetched" in ask(**alone).stderr
    first = ask(HF_HUB_OFFLINE="0")
    assert first.returncode == 0 and "fetching o/judge: 0.0 GB" in first.stderr
    folder = Path(first.stdout.strip())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    for env in (alone, {"HF_HUB_OFFLINE": "0"}):
        again = ask(**env)
        assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    (folder / "model.safetensors").unlink()
    assert "cannot be fetched" in ask(**alone).stderr
    assert "fetching" in ask(HF_HUB_OFFLINE="0").stderr


def test_one_format_of_weights_is_fetched() -> None:
    shards = [f"model-{n:05}-of-00002.safetensors" for n in (1, 2)]
    beside = ["consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "a.py"]
    wanted = ["config.json", "model.safetensors.index.json", *shards]
    assert wanted_files([*wanted, *beside]) == wanted
    assert wanted_files(["adapter_model.safetensors"]) == ["adapter_model.safetensors"]
