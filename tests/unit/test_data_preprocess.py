"""Preprocessing: tokens are conserved, the output does not depend on the workers, failures leave nothing behind."""

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset
from patience import PATIENCE

from megatron_ko.data.jobs.job import remove_job
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokens.indexed import bin_path, idx_path
from megatron_ko.data.tokens.manifest import (
    IndexManifest,
    manifest_path,
    read_index_manifest,
    rejected_path,
    verify_shard,
)
from megatron_ko.data.tokens.merge import job_folder
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.errors import DataError, TokenizerError

ROOT = Path(__file__).parents[2]
Folder = Callable[[str], Path]


@pytest.fixture
def options(tmp_path: Path, korean: Callable[..., list[str]], tokenizer_folder: Folder) -> PreprocessOptions:
    jsonl, text = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines = [json.dumps({"text": document}, ensure_ascii=False) for document in korean(9000, 11)]
    lines[17:17] = ["{broken", '{"no": 1}', ""]
    jsonl.write_text("\n".join(lines), encoding="utf-8")
    text.write_text("\n".join(document.replace("\n", " ") for document in korean(300, 12)), encoding="utf-8")
    return PreprocessOptions((jsonl, text), tokenizer_folder("unigram"), tmp_path / "out" / "shard.v1")


def single(options: PreprocessOptions) -> IndexManifest:
    (written,) = preprocess(options)
    assert written.prefix == options.output
    return written.manifest


def contents(prefix: Path) -> dict[str, bytes]:
    return {path.name.removeprefix(prefix.name): path.read_bytes() for path in prefix.parent.iterdir()}


def test_documents_come_out_in_order_and_whole(options: PreprocessOptions, korean: Callable[..., list[str]]) -> None:
    manifest = single(options)
    tokenizer = load_tokenizer(options.tokenizer)
    oracle = IndexedDataset(str(options.output))
    texts = [*korean(9000, 11), *(document.replace("\n", " ") for document in korean(300, 12))]
    assert len(oracle) == manifest.documents == len(texts)
    for index in (0, 1, 17, 4500, 8999, 9000, 9299):
        ids = oracle[index].tolist()
        assert ids[-1] == tokenizer.eod and tokenizer.eod not in ids[:-1]
        assert tokenizer.decode(ids[:-1]) == texts[index]
    assert manifest.tokens == int(oracle.sequence_lengths.sum()) == sum(map(len, tokenizer.encode_batch(texts))) + 9300
    assert manifest.bytes == sum(len(text.encode()) for text in texts)
    assert manifest.rejected_reasons == {"malformed JSON": 1, "no 'text'": 1}
    assert [(source.documents, source.rejected) for source in manifest.sources] == [(9000, 2), (300, 0)]
    rejected = [json.loads(line) for line in rejected_path(options.output).read_text(encoding="utf-8").splitlines()]
    assert [(record["position"], record["reason"].split(":")[0]) for record in rejected] == [
        (18, "malformed JSON"),
        (19, "no 'text'"),
    ]
    assert verify_shard(options.output) == read_index_manifest(options.output) == manifest


def test_the_number_of_workers_changes_no_byte(options: PreprocessOptions, tmp_path: Path) -> None:
    preprocess(options)
    several = replace(options, output=tmp_path / "other" / "shard.v1", workers=3)
    preprocess(several)
    assert contents(options.output) == contents(several.output)
    assert set(contents(options.output)) == {".bin", ".idx", ".manifest.json", ".rejected.jsonl"}


def test_without_eod_and_with_another_tokenizer(options: PreprocessOptions, tokenizer_folder: Folder) -> None:
    ended = single(replace(options, tokenizer=tokenizer_folder("byte-bpe")))
    bare_prefix = options.output.with_name("bare")
    bare = single(replace(options, tokenizer=tokenizer_folder("byte-bpe"), output=bare_prefix, append_eod=False))
    assert bare.eod is None and ended.eod == 2
    assert ended.tokens - bare.tokens == ended.documents == bare.documents
    assert bare.tokenizer_kind == "byte-bpe"


@pytest.mark.parametrize("model", ["unigram", "byte-bpe"])
def test_documents_begin_with_bos(options: PreprocessOptions, tokenizer_folder: Folder, model: str) -> None:
    options = replace(options, tokenizer=tokenizer_folder(model))
    plain = single(options)
    begun = preprocess(replace(options, output=options.output.with_name("bos"), bos=True, verify=True))[0]
    tokenizer = load_tokenizer(options.tokenizer)
    with_bos, without = IndexedDataset(str(begun.prefix)), IndexedDataset(str(options.output))
    for index in (0, 1, 4500, 9299):
        assert with_bos[index].tolist() == [tokenizer.bos, *without[index].tolist()]
    assert (begun.manifest.bos, begun.manifest.eod, plain.bos) == (1, 2, None)
    assert begun.manifest.tokens == plain.tokens + plain.documents and begun.manifest.bytes == plain.bytes
    assert begun.verified and begun.verified.decoded == begun.verified.exact > 100
    assert read_index_manifest(begun.prefix).bos == 1 and verify_shard(begun.prefix) == begun.manifest
    alone = single(replace(options, output=options.output.with_name("alone"), bos=True, append_eod=False))
    assert alone.tokens == plain.tokens and alone.eod is None
    bare = IndexedDataset(str(options.output.with_name("alone")))  # its arrays end with it
    assert bare[1].tolist() == with_bos[1].tolist()[:-1]


def test_unfinished_work_with_bos_goes_on_with_bos_only(options: PreprocessOptions) -> None:
    preprocess(replace(options, bos=True, rank=0, size=2))
    with pytest.raises(DataError, match="unfinished run with other options") as caught:
        preprocess(replace(options, rank=1, size=2))
    assert "tokenizer.bos: null" in str(caught.value) and "tokenizer.bos: 1" in str(caught.value)


def test_a_tokenizer_without_bos_is_refused(options: PreprocessOptions, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(options.tokenizer, folder)
    config = folder / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    options = replace(options, tokenizer=folder, bos=True)
    config.write_text(json.dumps({**content, "bos_token": content["eos_token"]}), encoding="utf-8")
    with pytest.raises(TokenizerError, match="the same token would end a document and begin the next one"):
        preprocess(options)
    config.write_text(json.dumps({**content, "bos_token": None}), encoding="utf-8")
    with pytest.raises(TokenizerError, match="does not say which token begins a document"):
        preprocess(options)
    assert not job_folder(options.output).exists()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=20))
def test_tokens_are_conserved(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Folder, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("conserved")
    lines = [json.dumps({"text": text}, ensure_ascii=index % 2 == 0) for index, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = PreprocessOptions((folder / "a.jsonl",), tokenizer_folder("unigram"), folder / "out")
    kept = [text for text in texts if text.strip()]
    if not kept:
        with pytest.raises(DataError, match="corpus is empty"):
            preprocess(options)
        return
    manifest = single(options)
    tokenizer = load_tokenizer(options.tokenizer)
    assert manifest.documents + manifest.rejected == len(texts)
    oracle = IndexedDataset(str(options.output))
    assert [tokenizer.decode(oracle[index].tolist()[:-1]) for index in range(len(oracle))] == kept
    assert manifest.tokens == sum(len(oracle[index]) for index in range(len(oracle)))
    assert manifest.max_token_id == max(int(oracle[index].max()) for index in range(len(oracle)))


def test_an_existing_output_is_not_touched(options: PreprocessOptions) -> None:
    preprocess(options)
    before = contents(options.output)
    with pytest.raises(DataError, match="exists already"):
        preprocess(options)
    assert contents(options.output) == before
    for path in (bin_path, idx_path, manifest_path):
        path(options.output).unlink()
    with pytest.raises(DataError, match="exists already"):
        preprocess(options)


def test_an_empty_corpus_says_what_was_there(options: PreprocessOptions, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="corpus is empty") as caught:
        preprocess(replace(options, inputs=options.inputs[:1], keys=("body",)))
    assert "9002 rejected" in str(caught.value) and "no 'body'" in str(caught.value)
    assert not contents(options.output)


def limited(*words: object, file_size: int) -> subprocess.CompletedProcess[str]:
    """The command with a limit on file sizes: writing beyond it fails as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    command = [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]
    return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_and_nothing_is_lost(options: PreprocessOptions, tmp_path: Path, workers: int) -> None:
    large = tmp_path / "large.jsonl"
    large.write_text("\n".join([options.inputs[0].read_text(encoding="utf-8")] * 4), encoding="utf-8")
    options = replace(options, inputs=(large,), workers=workers)
    words = ("--input", large, "--tokenizer", options.tokenizer, "--output", options.output)
    # What a part needs does not fit; then parts do, and the merged file does not.
    for file_size, kept in ((100_000, False), (6_000_000, True)):
        result = limited("data", "preprocess", *words, "--workers", workers, file_size=file_size)
        assert result.returncode == 2, result.stderr
        assert "disk is full" in result.stderr and "Traceback" not in result.stderr
        assert not [path for path in options.output.parent.iterdir() if path.is_file()]
        assert ("run the same command to continue" in result.stderr) == kept
    preprocess(options)
    undisturbed = replace(options, output=tmp_path / "other" / "shard.v1")
    preprocess(undisturbed)
    assert contents(options.output) == contents(undisturbed.output)


def test_workers_die_with_the_parent_and_a_new_run_is_clean(options: PreprocessOptions) -> None:
    words = ["--input", str(options.inputs[0]), "--tokenizer", str(options.tokenizer), "--output", str(options.output)]
    command = [sys.executable, "-m", "megatron_ko.cli.main", "data", "preprocess", *words, "--workers", "2"]
    parent = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + PATIENCE
    children: list[psutil.Process] = []
    while time.monotonic() < deadline and not children and parent.poll() is None:
        children = psutil.Process(parent.pid).children(recursive=True)
        time.sleep(0.005)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert children and not alive
    assert not [path for path in options.output.parent.iterdir() if path.is_file()]
    preprocess(replace(options, inputs=options.inputs[:1]))
    verify_shard(options.output)
    assert set(contents(options.output)) == {".bin", ".idx", ".manifest.json", ".rejected.jsonl"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_block_is_told_and_nothing_gets_a_name(options: PreprocessOptions, workers: int) -> None:
    packed = bytearray(gzip.compress(options.inputs[0].read_bytes()))
    packed[-len(packed) // 4] ^= 255
    damaged = options.inputs[0].with_name("damaged.jsonl.gz")
    damaged.write_bytes(packed)
    options = replace(options, inputs=(*options.inputs, damaged), workers=workers, chunk_bytes=500_000)
    with pytest.raises(DataError, match=r"damaged\.jsonl\.gz is damaged") as caught:
        preprocess(options)
    assert "at byte" in str(caught.value)
    assert not [path for path in options.output.parent.iterdir() if path.is_file()]
    # The file is replaced: what was done before belongs to other inputs, and it says so.
    damaged.write_bytes(gzip.compress(b'{"text": "whole"}'))
    with pytest.raises(DataError, match="unfinished run") as caught:
        preprocess(options)
    assert "damaged.jsonl.gz" in str(caught.value) and "a.jsonl:" not in str(caught.value)
    remove_job(job_folder(options.output))
    assert single(options).documents == 9301


def test_a_second_writer_is_refused(options: PreprocessOptions) -> None:
    import fcntl

    folder = job_folder(options.output)
    folder.mkdir(parents=True)
    with (folder / "rank-00000.jsonl").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            preprocess(options)
        assert folder.exists()


def test_verify_and_inspect(options: PreprocessOptions, tokenizer_folder: Folder) -> None:
    words = ["--input", str(options.inputs[0]), str(options.inputs[1]), "--tokenizer", str(options.tokenizer)]
    done = run("data", "preprocess", *words, "--output", str(options.output), "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 9300
    view = json.loads(
        run("data", "inspect", str(options.output), "--tokenizer", str(options.tokenizer), "--json").stdout
    )
    (shard,) = view["shards"]
    assert view["totals"]["tokens"] == shard["manifest"]["tokens"] == read_index_manifest(options.output).tokens
    assert len(shard["samples"]) == 3 and shard["samples"][0]["text"].endswith("</s>")
    assert view["sources"] == {str(options.inputs[0]): 9000, str(options.inputs[1]): 300}
    oracle = IndexedDataset(str(options.output))  # its arrays end with it
    lengths = oracle.sequence_lengths
    assert sum(count for *_, count in view["histogram"]) == 9300
    for least, most, count in view["histogram"]:
        assert count == int(((lengths >= least) & (lengths <= most)).sum())
    assert json.loads(run("data", "verify", str(options.output), "--json").stdout)["ok"]
    other = run("data", "inspect", str(options.output), "--tokenizer", str(tokenizer_folder("bpe")))
    assert other.returncode == 2 and "another tokenizer" in other.stderr
    flip(bin_path(options.output), 5000)
    broken = run("data", "verify", str(options.output))
    assert broken.returncode == 2 and "sha256" in broken.stderr


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_ko.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_damaged_manifests(options: PreprocessOptions) -> None:
    preprocess(options)
    path = manifest_path(options.output)
    whole = json.loads(path.read_text(encoding="utf-8"))
    for change, what in (
        ({"format": 99}, "another format"),
        ({"tokens": whole["tokens"] + 1}, "not what its manifest describes"),
        ({"max_token_id": 9}, "contradicts its manifest"),
        ({"vocab_size": 100}, "contradicts its manifest"),
        ({"sources": 3}, "damaged"),
    ):
        path.write_text(json.dumps({**whole, **change}), encoding="utf-8")
        with pytest.raises(DataError, match=what):
            verify_shard(options.output)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        read_index_manifest(options.output)
    path.unlink()
    with pytest.raises(DataError, match="no manifest"):
        read_index_manifest(options.output)


def test_progress_reaches_the_size_of_the_inputs(options: PreprocessOptions) -> None:
    seen: list[int] = []
    preprocess(options, seen.append)
    assert seen == sorted(seen) and seen[-1] == sum(path.stat().st_size for path in options.inputs)


def test_workers_import_no_torch() -> None:
    code = (
        "import sys, megatron_ko.data.tokens.encode; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_uint16_ids_survive(options: PreprocessOptions) -> None:
    manifest = single(options)
    assert manifest.dtype == "uint16" and bin_path(options.output).stat().st_size == 2 * manifest.tokens
    assert np.fromfile(bin_path(options.output), dtype=np.uint16).max() == manifest.max_token_id
    assert os.path.getsize(idx_path(options.output)) == manifest.sizes["idx"]
