"""``data chat`` and ``data preference``: the same files however they are made, and every record accounted for."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import orjson
import pyarrow
import pyarrow.parquet
import pytest

from megatron_ko.data.chat.preprocess import ChatOptions, preprocess_chat
from megatron_ko.data.chat.preview import preview_rows
from megatron_ko.data.tokenizer.chat_template import preset_source, set_template
from megatron_ko.data.tokens.manifest import FILES, verify_shard
from megatron_ko.errors import DataError

CHUNK = 4_000
RECORDS = [{"prompt": f"{n}번째 질문입니다", "completion": f"{n % 7}번 답입니다. " * (n % 5 + 1)} for n in range(300)]
PAIRS = [{"prompt": one["prompt"], "chosen": one["completion"], "rejected": "모릅니다."} for one in RECORDS]


@pytest.fixture
def folder(tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    set_template(copytree(tokenizer_folder("byte-bpe"), tmp_path / "tok"), preset_source("chatml"))
    write(tmp_path / "chat.jsonl", RECORDS)
    write(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path


def write(path: Path, records: list[dict[str, object]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))


def options(folder: Path, name: str, workers: int = 1, output: str = "out") -> ChatOptions:
    return ChatOptions((folder / name,), folder / "tok", folder / output, "pairs" in name, workers, chunk_bytes=CHUNK)


def content(folder: Path, output: str = "out") -> dict[str, bytes]:
    return {suffix: path.read_bytes() for suffix in FILES if (path := folder / f"{output}{suffix}").exists()}


@pytest.mark.parametrize("name", ["chat.jsonl", "pairs.jsonl"])
def test_the_same_files_with_any_number_of_workers_and_from_parquet(name: str, folder: Path) -> None:
    manifest = preprocess_chat(options(folder, name)).manifest
    alone = content(folder)
    preprocess_chat(options(folder, name, workers=2, output="two"))
    assert content(folder, "two") == alone and ".marks" in alone
    each = 2 if "pairs" in name else 1
    assert manifest.records["records"] == len(RECORDS) and manifest.documents == each * len(RECORDS)
    assert verify_shard(folder / "out").trained_tokens == sum(mark > 0 for mark in alone[".marks"])
    rows = [orjson.loads(line) for line in (folder / name).read_bytes().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "same-pairs.parquet")
    kind = options(folder, name)
    table = ChatOptions((folder / "same-pairs.parquet",), kind.tokenizer, folder / "table", kind.preference)
    preprocess_chat(table)
    assert content(folder, "table")[".bin"] == alone[".bin"]


def test_a_killed_job_goes_on_to_the_same_files(folder: Path) -> None:
    preprocess_chat(options(folder, "chat.jsonl"))
    whole = content(folder)
    code = (
        "from pathlib import Path; from megatron_ko.data.chat.preprocess import *; import sys, time; "
        "from megatron_ko.data.chat import encode; add = encode.EncodeConversations.__call__; "
        "encode.EncodeConversations.__call__ = lambda *a: (time.sleep(0.05), add(*a))[1]; f = Path(sys.argv[1]); "
        f"preprocess_chat(ChatOptions((f / 'chat.jsonl',), f / 'tok', f / 'killed', chunk_bytes={CHUNK}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    parts = folder / "killed.parts"
    while process.poll() is None and len(list(parts.glob("part-*"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "killed.bin").exists()
    preprocess_chat(options(folder, "chat.jsonl", output="killed"))
    assert content(folder, "killed") == whole


def test_records_that_cannot_be_trained_on_are_kept_apart_with_the_reason(folder: Path) -> None:
    bad = [{"messages": []}, {"prompt": "가"}, {"prompt": "가", "completion": "<|im_end|>"}]
    write(folder / "chat.jsonl", [*RECORDS[:5], *bad, *RECORDS[5:9]])
    written = preprocess_chat(options(folder, "chat.jsonl"))
    assert written.manifest.documents == 9 and written.manifest.rejected == 3
    lines = [json.loads(line) for line in (folder / "out.rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["position"], line["reason"].split(":")[0]) for line in lines] == [
        (6, "no message"), (7, "no conversation"), (8, "spells a marker")
    ]  # fmt: skip


def test_bad_input_says_what_the_fields_are(folder: Path) -> None:
    write(folder / "chat.jsonl", [{"question": "가", "answer": "나"}])
    with pytest.raises(DataError, match="fields question, answer"):
        preprocess_chat(options(folder, "chat.jsonl"))
    renamed = ChatOptions(
        (folder / "chat.jsonl",),
        folder / "tok",
        folder / "out",
        renamed={"question": "prompt", "answer": "completion"},
    )
    assert preprocess_chat(renamed).manifest.documents == 1
    write(folder / "only-bad.jsonl", [{"messages": []}])
    with pytest.raises(DataError, match="no conversation can be trained on"):
        preprocess_chat(options(folder, "only-bad.jsonl", output="bad"))
    (folder / "plain.txt").write_text("글", encoding="utf-8")
    with pytest.raises(DataError, match="files with fields"):
        preprocess_chat(options(folder, "plain.txt", output="plain"))


def test_the_preview_shows_what_is_trained(folder: Path) -> None:
    preprocess_chat(options(folder, "pairs.jsonl"))
    good, bad = preview_rows(folder / "out", folder / "tok", 1)
    assert (good.row, good.good, bad.row, bad.good) == (0, True, 0, False)
    assert good.trained_text == "0번 답입니다. <|im_end|>" and bad.trained_text == "모릅니다.<|im_end|>"
    assert len(good.trained) == len(good.ids) and good.text.startswith("<|im_start|>user\n0번째")


def test_an_answer_with_a_verdict_comes_with_that_to_another_prompt(folder: Path) -> None:
    verdicts = [{**one, "label": number % 3 > 0} for number, one in enumerate(RECORDS[:40])]
    write(folder / "verdicts.jsonl", [*verdicts[:3], {"prompt": "가"}, *verdicts[3:]])
    made = preprocess_chat(ChatOptions((folder / "verdicts.jsonl",), folder / "tok", folder / "out", preference=True))
    manifest = verify_shard(folder / "out")
    assert manifest.chat is not None and manifest.chat.kind == "verdicts" and made.manifest.rejected == 1
    assert manifest.documents == 80 and manifest.records["records"] == 40
    views = preview_rows(folder / "out", folder / "tok", 40)
    for number, (answer, other) in enumerate(zip(views[0::2], views[1::2], strict=True)):
        assert answer.good == verdicts[number]["label"]
        prompt = answer.text.removesuffix(answer.trained_text)
        assert other.mismatched and not any(other.trained)
        wrong = other.text.removeprefix(prompt).removesuffix("<|im_end|>")
        assert wrong != verdicts[number]["completion"]
        assert wrong in [one["completion"] for one in verdicts if one["prompt"] != verdicts[number]["prompt"]]
    assert manifest.trained_tokens == sum(mark in (1, 2) for mark in content(folder)[".marks"])


def test_a_verdict_alone_has_nothing_to_be_compared_with(folder: Path) -> None:
    same = [{"prompt": "가?", "completion": text, "label": text == "좋은 답"} for text in ("좋은 답", "나쁜 답")]
    write(folder / "verdicts.jsonl", [*same, {"prompt": "나?", "completion": "다른 답", "label": 1}])
    options = ChatOptions((folder / "verdicts.jsonl",), folder / "tok", folder / "out", preference=True)
    preprocess_chat(options)
    views = preview_rows(folder / "out", folder / "tok", 3)
    assert ["다른 답" in view.text for view in views[1:4:2]] == [True, True], "not the other answer to the same prompt"
    write(folder / "verdicts.jsonl", same)
    with pytest.raises(DataError, match="no other prompt"):
        preprocess_chat(replace(options, output=folder / "alone"))


def test_fields_that_a_table_leaves_empty_are_no_part_of_a_record(folder: Path) -> None:
    calls = [{"function": {"name": "날씨", "arguments": arguments}} for arguments in ({"도시": "부산"}, {"구역": "Z"})]
    rows = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in calls
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "calls.parquet")
    preprocess_chat(ChatOptions((folder / "calls.parquet",), folder / "tok", folder / "out"))
    trained = [view.trained_text for view in preview_rows(folder / "out", folder / "tok", 2)]
    assert "null" not in "".join(trained) and "부산" in trained[0] and "Z" in trained[1]


def test_the_first_record_may_be_no_conversation(folder: Path) -> None:
    write(folder / "chat.jsonl", [{"id": 1}, {"messages": None, **RECORDS[0]}, RECORDS[1]])
    manifest = preprocess_chat(options(folder, "chat.jsonl")).manifest
    assert (manifest.documents, manifest.rejected) == (2, 1)


def test_two_fields_of_one_name_are_refused(folder: Path) -> None:
    write(folder / "chat.jsonl", [{"q": "가", "prompt": "나", "completion": "다"}, {"q": "가", "completion": "다"}])
    renamed = replace(options(folder, "chat.jsonl"), renamed={"q": "prompt"})
    assert preprocess_chat(renamed).manifest.rejected_reasons == {"two fields of one name": 1}
