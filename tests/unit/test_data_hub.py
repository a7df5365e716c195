"""Datasets of the hub, read through a stand-in of it that listens on this machine."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_ko.data.text.hub import HubName
from megatron_ko.errors import DataError
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
NOW, BEFORE = "a" * 40, "b" * 40


def table(*texts: str) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), sink)
    return sink.getvalue()


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


# By dataset and commit: the files, and what the card says.
CARD = [
    {"config_name": "ko", "data_files": [{"split": "train", "path": "ko/**/*.parquet"}]},
    {"config_name": "en", "data_files": "en/*"},
]
HUB: dict[tuple[str, str], tuple[dict[str, bytes], list[dict[str, Any]]]] = {
    ("owner/plain", NOW): (
        {
            "README.md": b"# card",
            "data/train-00000-of-00002.parquet": table("하나 첫째 문서"),
            "data/train-00001-of-00002.parquet": table("둘 다음 문서", "셋 마지막 문서"),
            "data/test-00000-of-00001.parquet": table("시험 문서"),
        },
        [],
    ),
    ("owner/plain", BEFORE): ({"corpus.jsonl": lines("옛 판의 문서")}, []),
    ("owner/many", NOW): ({"ko/a/1.parquet": table("한국어"), "en/1.jsonl": lines("English")}, CARD),
    ("owner/both", NOW): ({"train.parquet": table("같은 글"), "train.jsonl": lines("같은 글")}, []),
}


class StandIn(BaseHTTPRequestHandler):
    """GET /api/datasets/NAME/revision/REVISION, HEAD and GET /datasets/NAME/resolve/COMMIT/FILE."""

    def do_GET(self) -> None:
        head, _, rest = self.path.lstrip("/").partition("datasets/")
        owner, short, *more = rest.split("?")[0].split("/")
        wanted = more[1] if len(more) > 1 else "main"
        commit = {"main": NOW, "v1": BEFORE}.get(wanted, wanted)
        files, configs = HUB.get((f"{owner}/{short}", commit), ({}, []))
        name = "/".join(more[2:])
        if not files or (head != "api/" and name not in files):
            known = any(key[0] == f"{owner}/{short}" for key in HUB)
            code = "EntryNotFound" if files else "RevisionNotFound" if known else "RepoNotFound"
            self._answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
        elif head == "api/":
            content = {
                "id": f"{owner}/{short}",
                "sha": commit,
                "siblings": [{"rfilename": file} for file in files],
                "cardData": {"configs": configs} if configs else {},
                "private": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
            }
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        else:
            content = files[name]
            self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    do_HEAD = do_GET

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def started(code: str, endpoint: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A new process, because huggingface_hub reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


EXPAND = """
import json, sys
from pathlib import Path
from megatron_ko.data.text.documents import read_documents
from megatron_ko.data.text.inputs import expand_inputs
from megatron_ko.errors import DataError
for name in sys.argv[1:]:
    try:
        texts = [document.text for path in expand_inputs([Path(name)]) for document in read_documents(path)]
        print(json.dumps(texts))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def test_splits_configurations_and_revisions(hub: str, tmp_path: Path) -> None:
    wanted = {
        "hf:owner/plain": ["하나 첫째 문서", "둘 다음 문서", "셋 마지막 문서"],
        "hf:owner/plain:test": ["시험 문서"],
        "hf:owner/plain@v1": ["옛 판의 문서"],
        f"hf:owner/plain@{BEFORE}:train": ["옛 판의 문서"],
        "hf:owner/many:ko:train": ["한국어"],
        "hf:owner/many:en:train": ["English"],
    }
    refused = {
        "hf:owner/many": "one of: ko, en",
        "hf:owner/plain:ko:train": "no such configuration",
        "hf:owner/plain:validation": "one of: test, train",
        "hf:owner/plain@v9": "RevisionNotFoundError",
        "hf:owner/none": "RepositoryNotFoundError",
        "hf:owner/both": "several kinds",
        "hf:owner/plain:train[:10%]": "no such configuration",
        "hf:owner/plain:a:b:c": "no name of a hub dataset",
    }
    done = started(EXPAND, hub, tmp_path, *wanted, *refused)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(wanted) + len(refused), done.stderr
    assert dict(zip(wanted, answers, strict=False)) == wanted
    for name, answer in zip(refused, answers[len(wanted) :], strict=True):
        assert refused[name] in answer and "remedy:" in answer, (name, answer)


CLEAN = "import sys; from megatron_ko.cli.main import main; sys.argv[0] = 'megatron-ko'; main()"


def test_clean_reads_a_hub_dataset_and_says_what_it_could_not_fetch(hub: str, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text("stages: [{length: {min_characters: 7}}]\n", encoding="utf-8")
    options = ["--output", str(tmp_path / "clean"), "--config", str(pipeline), "--workers", "1", "--json"]
    done = started(CLEAN, hub, tmp_path, "data", "clean", "--input", "hf:owner/plain", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["in"]["documents"], report["out"]["documents"]) == (3, 3)
    manifest = json.loads((tmp_path / "clean/manifest.json").read_text(encoding="utf-8"))
    assert all(f"snapshots/{NOW}/data/train-0000" in source["path"] for source in manifest["sources"])
    # A port on which nobody listens: no network.
    done = started(CLEAN, "http://127.0.0.1:9", tmp_path, "data", "clean", "--input", "hf:owner/plain", *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "was not fetched" in done.stderr and "remedy:" in done.stderr


def test_names_are_refused_before_anything_is_fetched() -> None:
    assert HubName.parsed("a/b@refs/convert/parquet:c:d") == HubName("a/b", "refs/convert/parquet", "c", "d")
    for text in ("", ":train", "a/b:", "a/b:c:d:e"):
        with pytest.raises(DataError, match="no name of a hub dataset"):
            HubName.parsed(text)
