"""Shards, ranks and several keys: the same documents in the same order, cut, shared out or side by side."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset
from patience import PATIENCE

from megatron_ko.data.jobs.job import Part
from megatron_ko.data.text.records import Block
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokens.encode import EncodeOptions, parse_keys
from megatron_ko.data.tokens.indexed import bin_path, idx_path
from megatron_ko.data.tokens.inspect import inspect_data, verify_data
from megatron_ko.data.tokens.manifest import IndexManifest, read_index_manifest, rejected_path
from megatron_ko.data.tokens.merge import job_folder, merge
from megatron_ko.data.tokens.merge_shard import ranges_of_shards
from megatron_ko.data.tokens.parts import Layout, PartView
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.data.tokens.shards import borders, find_shards
from megatron_ko.errors import DataError
from megatron_ko.storage.journal import finish_renames

ROOT = Path(__file__).parents[2]
Folder = Callable[[str], Path]


@pytest.fixture
def options(tmp_path: Path, korean: Callable[..., list[str]], tokenizer_folder: Folder) -> PreprocessOptions:
    texts = korean(4000, 21)
    lines = [json.dumps({"text": text, "title": text[:9]}, ensure_ascii=False) for text in texts]
    for place in (0, 900, 901, 2500, len(lines)):
        lines.insert(place, "{broken")
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:3000]), encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text("{broken\n" * 40_000, encoding="utf-8")
    (tmp_path / "c.jsonl").write_text("\n".join(lines[3000:]), encoding="utf-8")
    inputs = tuple(tmp_path / name for name in ("a.jsonl", "bad.jsonl", "c.jsonl"))
    (tmp_path / "out").mkdir()
    return PreprocessOptions(inputs, tokenizer_folder("unigram"), tmp_path / "out" / "data", chunk_bytes=100_000)


def ids_of(prefixes: list[Path]) -> list[list[int]]:
    return [dataset[index].tolist() for prefix in prefixes for dataset in [IndexedDataset(str(prefix))]
            for index in range(len(dataset))]  # fmt: skip


def rejected_of(prefixes: list[Path]) -> str:
    present = [rejected_path(prefix) for prefix in prefixes if rejected_path(prefix).exists()]
    return "".join(path.read_text(encoding="utf-8") for path in present)


@pytest.mark.parametrize("way", [{"shards": 5}, {"shard_tokens": 90_000}, {"shards": 1}])
def test_shards_hold_what_one_file_holds(options: PreprocessOptions, way: dict[str, int]) -> None:
    whole = replace(options, output=options.output.with_name("whole"))
    (single,) = preprocess(whole)
    written = preprocess(replace(options, workers=2, **way))
    prefixes = [one.prefix for one in written]
    number = len(prefixes)
    assert number == way.get("shards", -(-single.manifest.tokens // 90_000))
    assert [prefix.name for prefix in prefixes] == [f"data-{n:05d}-of-{number:05d}" for n in range(number)]
    assert find_shards(options.output) == prefixes
    assert ids_of(prefixes) == ids_of([whole.output])
    assert rejected_of(prefixes) == rejected_of([whole.output])
    manifests = [one.manifest for one in written]
    for name in ("documents", "tokens", "bytes", "rejected"):
        assert sum(getattr(m, name) for m in manifests) == getattr(single.manifest, name)
    assert single.manifest.rejected == 40_005
    assert max(m.tokens for m in manifests) - min(m.tokens for m in manifests) < 600
    assert [m.shard for m in manifests] == [(n, number) for n in range(number)]
    tokenizer = load_tokenizer(options.tokenizer)
    for prefix, manifest in verify_data(options.output):
        texts = [tokenizer.decode(ids[:-1]) for ids in ids_of([prefix])]
        assert manifest.bytes == sum(len(text.encode()) for text in texts)
        assert sum(source.documents for source in manifest.sources) == manifest.documents
    view = inspect_data(options.output, None, 1)
    assert [shard.prefix for shard in view.shards] == list(map(str, prefixes))
    assert view.totals.tokens == single.manifest.tokens and view.totals.rejected == 40_005


def test_missing_and_repeated_shards(options: PreprocessOptions) -> None:
    preprocess(replace(options, shards=3))
    with pytest.raises(DataError, match="exists already"):
        preprocess(options.__class__(options.inputs, options.tokenizer, options.output, shards=2))
    names = [path.name for path in find_shards(options.output)]
    for suffix in (".bin", ".idx", ".manifest.json"):
        source = options.output.with_name(names[0] + suffix)
        options.output.with_name(names[1] + suffix).write_bytes(source.read_bytes())
    with pytest.raises(DataError, match="same tokens"):
        verify_data(options.output)
    assert len(find_shards(options.output.parent)) == 3
    idx_path(options.output.with_name(names[2])).unlink()
    with pytest.raises(DataError, match="1 of 3 shards are missing"):
        verify_data(options.output)


def test_more_shards_than_documents(options: PreprocessOptions, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("하나\n둘\n셋\n", encoding="utf-8")
    few = replace(options, inputs=(tmp_path / "few.txt",))
    assert [one.manifest.documents for one in preprocess(replace(few, shards=3))] == [1, 1, 1]
    other = replace(few, output=tmp_path / "other")
    with pytest.raises(DataError, match="cannot be divided into 4 shards"):
        preprocess(replace(other, shards=4))
    assert len(preprocess(replace(other, output=tmp_path / "tokens", shard_tokens=1))) == 3


def test_ranks_write_what_one_process_writes(options: PreprocessOptions) -> None:
    whole = replace(options, output=options.output.with_name("whole"))
    preprocess(whole)
    for rank in (2, 0):
        assert preprocess(replace(options, rank=rank, size=3)) == []
    with pytest.raises(DataError, match="1 of 3 ranks are missing: 1"):
        merge(options.output)
    preprocess(replace(options, rank=1, size=3))
    (written,) = merge(options.output, verify_with=options.tokenizer)
    assert written.verified and written.verified.decoded == written.verified.exact > 5
    for path in (bin_path, idx_path, rejected_path):
        assert path(options.output).read_bytes() == path(whole.output).read_bytes()
    assert not job_folder(options.output).exists()
    with pytest.raises(DataError, match="no unfinished work"):
        merge(options.output)


def test_several_keys_stay_side_by_side(options: PreprocessOptions) -> None:
    lines = [{"text": f"글 {n}", "title": f"제목 {n}"} for n in range(50)]
    del lines[3]["title"]
    lines[7]["text"] = ""
    lines[9] = {"text": "", "title": " "}
    options.inputs[0].write_text("\n".join(map(json.dumps, lines)) + "\n{broken", encoding="utf-8")
    written = preprocess(replace(options, inputs=options.inputs[:1], keys=("text", "title"), verify=True))
    assert [one.prefix.name for one in written] == ["data_text", "data_title"]
    assert [one.manifest.key for one in written] == ["text", "title"]
    tokenizer = load_tokenizer(options.tokenizer)
    texts, titles = ([tokenizer.decode(ids[:-1]) for ids in ids_of([one.prefix])] for one in written)
    assert titles == [text.replace("글", "제목") for text in texts] and len(texts) == 47
    reasons = {"empty text": 2, "malformed JSON": 1, "no 'title'": 1}
    assert all(one.manifest.rejected_reasons == reasons and one.verified.exact == 47 for one in written)
    for keys in (("text", "text"), ("text", "title")):
        with pytest.raises(DataError, match="several keys"):
            preprocess(replace(options, keys=keys, format="txt" if keys[1] == "title" else None))


def test_rejected_records_know_their_place() -> None:
    payload = b'{"a":"x","b":"y"}\n{"a":"x"}\nbad\n{"a":"x","b":"y"}\n{"b":"y"}'
    parsed = parse_keys(Block("s", "jsonl", 1, payload, 0), ("a", "b"))
    assert parsed.texts == [["x", "x"], ["y", "y"]]
    assert [record.position for record in parsed.rejected] == [2, 3, 5] and parsed.before.tolist() == [1, 1, 2]


class FakeView(PartView):
    """A part with lengths only."""

    def __init__(self, lengths: list[int]) -> None:
        self.documents, self.statistics = len(lengths), {"tokens": [sum(lengths)]}
        self._lengths = np.array(lengths, dtype=np.int64)

    def all_lengths(self) -> np.ndarray:
        return self._lengths


@given(
    parts=st.lists(st.lists(st.integers(0, 30), max_size=8), min_size=1, max_size=8).filter(lambda p: sum(map(len, p))),
    shards=st.integers(1, 60),
)
def test_borders_and_pieces_lose_nothing(parts: list[list[int]], shards: int) -> None:
    views = [FakeView(lengths) for lengths in parts]
    documents = sum(map(len, parts))
    if documents < shards:
        with pytest.raises(DataError, match="cannot be divided"):
            borders(views, shards)
        return
    cuts = borders(views, shards)
    assert len(cuts) == shards + 1 and cuts[0] == 0 and cuts[-1] == documents
    assert all(first < last for first, last in pairwise(cuts))
    lengths = np.array([length for part in parts for length in part])
    held = [int(lengths[first:last].sum()) for first, last in pairwise(cuts)]
    if lengths.min() > 0 and documents >= 2 * shards:
        assert max(held) <= lengths.sum() / shards + 2 * lengths.max()
    stored = [Part(n, Path(str(n)), {"documents": len(part)}) for n, part in enumerate(parts)]
    pieces = ranges_of_shards(stored, cuts)
    flat = [piece for shard in pieces for piece in shard]
    assert len(set((piece.part.index, piece.first) for piece in flat)) == len(flat)
    assert [piece.part.index for piece in flat] == sorted(piece.part.index for piece in flat)
    assert {piece.part.index for piece in flat} == set(range(len(parts)))
    assert [sum(piece.last - piece.first for piece in shard) for shard in pieces] == list(np.diff(cuts))
    taken = [(piece.part.index, number) for piece in flat for number in range(piece.first, piece.last)]
    assert taken == [(n, number) for n, part in enumerate(parts) for number in range(len(part))]


def test_a_kill_between_renames_is_finished_by_the_next_start(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    import megatron_ko.storage.journal as publishing

    renames: list[Path] = []

    def killed(source: Path, final: Path) -> None:
        if Path(final).parent == options.output.parent:
            renames.append(final)
            if len(renames) == 6:
                raise KeyboardInterrupt
        os.replace(source, final)

    with monkeypatch.context() as patched:
        patched.setattr(publishing.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            preprocess(replace(options, shards=3))
    assert job_folder(options.output).exists()
    with pytest.raises(DataError, match="other options"):
        preprocess(replace(options, shards=3, append_eod=False))
    written = preprocess(replace(options, shards=3))
    assert len(written) == 3 and not job_folder(options.output).exists()
    assert len(verify_data(options.output)) == 3
    assert not finish_renames(options.output.parent)


def test_outputs_that_are_folders(options: PreprocessOptions) -> None:
    for output in (options.output.parent, f"{options.output.parent}/", f"{options.output}/"):
        words = ("--input", options.inputs[0], "--tokenizer", options.tokenizer, "--output", output)
        done = run("data", "preprocess", *words)
        assert done.returncode == 2 and "the output is a folder" in done.stderr
    assert "out/corpus" in run("data", "preprocess", *words[:-1], options.output.parent).stderr


def test_an_empty_text_file_is_not_told_about_keys(options: PreprocessOptions, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="corpus is empty") as caught:
        preprocess(replace(options, inputs=(tmp_path / "empty.txt",)))
    assert "--json-key" not in str(caught.value)
    assert not job_folder(options.output).exists()


def run(*words: object, sent: bytes | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]
    done = subprocess.run(command, input=sent, capture_output=True, cwd=ROOT, timeout=PATIENCE)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_command_line(options: PreprocessOptions) -> None:
    common = ("--tokenizer", options.tokenizer, "--output", options.output)
    done = run("data", "preprocess", "--input", "-", *common, "--shards", 2, "--verify", "--json",
               sent=options.inputs[0].read_bytes())  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["outputs"]) == 2 and result["all"][1]["verified"]["exact"] >= 1
    (source,) = result["all"][0]["sources"]
    assert (source["path"], source["bytes"]) == ("-", options.inputs[0].stat().st_size)
    other = ("--tokenizer", options.tokenizer, "--output", options.output.with_name("ranks"))
    pattern = str(options.inputs[0].parent / "[ac].jsonl")
    for rank in range(2):
        done = run("data", "preprocess", "--input", pattern, *other, "--rank", rank, "--size", 2, "--json")
        assert json.loads(done.stdout) == {"finished": rank, "of": 2}
    done = run("data", "merge", "--output", options.output.with_name("ranks"), "--tokenizer", options.tokenizer)
    assert "4,000 documents" in done.stdout and "gave exactly the text" in done.stdout
    for words in (("--rank", 2, "--size", 2), ("--shards", 2, "--shard-tokens", 5)):
        assert run("data", "preprocess", "--input", pattern, *other, *words).returncode == 2


def test_old_manifests_are_read(options: PreprocessOptions) -> None:
    preprocess(options)
    path = options.output.with_name("data.manifest.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    manifest = read_index_manifest(options.output)
    assert isinstance(manifest, IndexManifest) and manifest.key == "text"
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in ("key", "shard")}), encoding="utf-8")
    assert read_index_manifest(options.output) == manifest


def test_the_layout_of_parts(options: PreprocessOptions, tmp_path: Path) -> None:
    """Odd numbers of two-byte ids leave the next section unaligned; nothing may depend on it."""
    from megatron_ko.data.jobs.chunks import Reading, read_chunks
    from megatron_ko.data.tokens.encode import EncodeChunk

    (tmp_path / "d.jsonl").write_text('{"text": "가"}\n{"text": "나다"}\nbad\n{"text": "라 마 바"}', encoding="utf-8")
    for text_bytes in (False, True):
        work = EncodeChunk(EncodeOptions(options.tokenizer, ("text", "text"), True, text_bytes))
        ((_, chunk),) = read_chunks(Reading((tmp_path / "d.jsonl",)))
        part = Part(0, tmp_path / "part", work(chunk, tmp_path / "part"))
        view = PartView(part, Layout(2, np.dtype(np.uint16), text_bytes))
        tokenizer = load_tokenizer(options.tokenizer)
        expected = [[*ids, tokenizer.eod] for ids in tokenizer.encode_batch(["가", "나다", "라 마 바"])]
        for key in range(2):
            assert view.lengths(key).tolist() == [len(ids) for ids in expected]
            assert view.ids(key, 1, 3).tolist() == expected[1] + expected[2]
            assert view.text_bytes(key, 0, 3) == 20
            assert not text_bytes or view.text_bytes(key, 1, 2) == 6
        assert [list(view.rejected(first, first + 1)) != [] for first in range(3)] == [False, False, True]
        assert list(view.sources(1, 3)) == [(str(tmp_path / "d.jsonl"), 2)]


def test_a_sample_that_decodes_to_other_text_stops_everything(
    options: PreprocessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import megatron_ko.data.tokens.roundtrip as samples

    options = replace(options, verify=True)
    # The hashes that encoding recorded are right; decoding is made to differ in one text of many.
    real = samples.text_hash
    with monkeypatch.context() as patched:
        patched.setattr(samples, "text_hash", lambda text: real(text + "x" * (len(text) > 150)))
        with pytest.raises(DataError, match="does not decode to the text that was read"):
            preprocess(options)
        assert not [path for path in options.output.parent.iterdir() if path.is_file()]
        # A tokenizer that was not trained here may normalise: differences are counted.
        foreign = tmp_path / "foreign"
        shutil.copytree(options.tokenizer, foreign)
        (foreign / "megatron_ko.json").unlink()
        (written,) = preprocess(replace(options, tokenizer=foreign, output=tmp_path / "foreign-data"))
        assert written.verified and 0 < written.verified.exact < written.verified.decoded
    (written,) = preprocess(options)
    assert written.verified and written.verified.exact == written.verified.decoded
