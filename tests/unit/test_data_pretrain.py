"""Samples depend on (seed, number) alone: not on ranks, resumes, the length of the run or an interrupted cache."""

import hashlib
import json
import multiprocessing
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_ko.config import DataConfig
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokens.indexed import IndexedReader, bin_path, idx_path
from megatron_ko.data.tokens.manifest import manifest_path, read_index_manifest
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.data.training.batch import Collator
from megatron_ko.data.training.feed import SampleFeed
from megatron_ko.data.training.origins import Reading
from megatron_ko.data.training.pretrain import Datasets, build_datasets
from megatron_ko.errors import DataError

Folder = Callable[[str], Path]
LENGTH = 32


@dataclass(frozen=True)
class Corpus:
    """Two shards and the tokenizer that encoded them."""

    tokenizer: Path
    large: Path
    small: Path

    def config(self, *sources: dict[str, Any], **fields: Any) -> DataConfig:
        chosen = sources or ({"prefix": self.large},)
        return DataConfig(tokenizer=self.tokenizer, sources=chosen, sequence_length=LENGTH, **fields)

    def build(self, config: DataConfig, samples: tuple[int, int, int] = (100, 10, 0), seed: int = 5) -> Datasets:
        return build_datasets(config, load_tokenizer(self.tokenizer), samples, seed)


@pytest.fixture
def corpus(tmp_path: Path, korean: Callable[..., list[str]], tokenizer_folder: Folder) -> Corpus:
    made = Corpus(tokenizer_folder("unigram"), tmp_path / "large", tmp_path / "small")
    for prefix, number, seed in ((made.large, 400, 21), (made.small, 150, 22)):
        source = tmp_path / f"{prefix.name}.jsonl"
        lines = (json.dumps({"text": text}) for text in korean(number, seed))
        source.write_text("\n".join(lines), encoding="utf-8")
        preprocess(PreprocessOptions((source,), made.tokenizer, prefix))
    return made


def rows(dataset: Any, indices: Iterable[int]) -> list[list[int]]:
    return [dataset[index]["tokens"].tolist() for index in indices]


def test_samples_are_windows_of_whole_documents(corpus: Corpus) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets = corpus.build(corpus.config())
    batch = Collator()(datasets.train, [0, 3, 7])
    assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape == batch.position_ids.shape == (3, LENGTH)
    assert batch.tokens.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64
    assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])
    assert batch.loss_mask.dtype == torch.float32 and bool((batch.loss_mask == 1).all())
    assert torch.equal(batch.position_ids, torch.arange(LENGTH).expand(3, LENGTH))


def test_a_document_begins_with_the_token_that_ended_the_one_before(corpus: Corpus) -> None:
    """As a prompt does in generation. A sample may begin within a document."""
    eod = load_tokenizer(corpus.tokenizer).eod
    dataset = corpus.build(corpus.config()).train
    batch = Collator(document_start=eod)(dataset, range(60))
    assert batch.documents is not None and Collator()(dataset, [0]).documents is None
    for tokens, numbers in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        assert numbers == [tokens[: place + 1].count(eod) for place in range(LENGTH)]
    assert 5 < int((batch.documents[:, -1] > 0).sum()) < 60


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_that_share_sequences_hold_every_token_once_and_equally_much_of_the_past(size: int) -> None:
    dataset = _Counting()
    parts = [Collator(cp_rank=rank, cp_size=size, document_start=0)(dataset, [3, 4]) for rank in range(size)]
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        together = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert together.sort(dim=1).values.equal(getattr(Collator()(dataset, [3, 4]), name))
    assert len({int(part.position_ids.sum()) for part in parts}) == 1
    assert all(part.documents is not None and part.documents.shape == (2, LENGTH) for part in parts)


class _Counting:
    """Every sample is 0, 1, 2, ..."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict.fromkeys(("tokens", "labels", "loss_mask", "position_ids"), torch.arange(LENGTH))


def test_one_epoch_holds_every_token_once_and_the_parts_do_not_overlap(corpus: Corpus) -> None:
    datasets = corpus.build(corpus.config(split=(80.0, 20.0, 0.0)), (10, 10**6, 0))
    reader = IndexedReader(corpus.large)
    border = round(0.8 * len(reader))
    for dataset, part in ((datasets.train, range(border)), (datasets.valid, range(border, len(reader)))):
        assert dataset is not None
        expected = np.bincount(np.concatenate([reader[n] for n in part]), minlength=1000)
        got = np.bincount(np.concatenate(rows(dataset, range(len(dataset)))), minlength=1000)
        left_over = expected - got
        assert left_over.min() >= 0 and left_over.sum() <= LENGTH
        assert len(dataset) == (expected.sum() - 1) // LENGTH


def test_the_first_epoch_is_megatron_cores(corpus: Corpus, tmp_path: Path) -> None:
    ours = corpus.build(corpus.config()).train
    config = GPTDatasetConfig(
        random_seed=5, sequence_length=LENGTH, blend=([str(corpus.large)], None), split="98,2,0",
        path_to_cache=str(tmp_path / "oracle"), tokenizer=_OracleTokenizer(), reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    oracle, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [100, 10, 0], lambda: True, config).build()
    assert len(ours) == len(oracle)
    assert rows(ours, range(len(ours))) == rows(oracle, range(len(oracle)))


class _OracleTokenizer:
    vocab_size, eod = 640, 2
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012


@pytest.mark.parametrize("mixed", [False, True])
def test_asking_for_more_steps_changes_nothing_that_was_consumed(corpus: Corpus, mixed: bool) -> None:
    sources = [{"prefix": corpus.large, "weight": 0.4}, {"prefix": corpus.small, "weight": 0.6}] if mixed else []
    config = corpus.config(*sources)
    short, longer = corpus.build(config, (700, 0, 0)).train, corpus.build(config, (5000, 0, 0)).train
    assert len(short) >= 700 and len(longer) >= 5000
    assert rows(short, range(700)) == rows(longer, range(700))


def test_further_epochs_are_other_permutations_of_the_same_samples(corpus: Corpus) -> None:
    one = len(corpus.build(corpus.config(), (1, 0, 0)).train)
    dataset = corpus.build(corpus.config(), (3 * one, 0, 0)).train
    epochs = [rows(dataset, range(number * one, (number + 1) * one)) for number in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert rows(dataset, [one + 5, 2, one + 5]) == [epochs[1][5], epochs[0][2], epochs[1][5]]


class _Numbers:
    """A dataset whose sample n is full of n."""

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict.fromkeys(("tokens", "labels", "loss_mask", "position_ids"), torch.full((2,), index))

    def count_by_source(self, indices: range) -> dict[str, int]:
        return {"numbers": len(indices)}

    tokens_by_source = lambda self, indices, length: {"numbers": len(indices) * length}  # noqa: E731
    count_by_dataset = count_by_source


def steps(consumed: int, number: int, micro: int, size: int, per_step: int) -> list[list[int]]:
    """Sample numbers of each step, gathered from all ranks in the order of the global batch."""
    gathered: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(number)]
    for rank in range(size):
        batches = SampleFeed(
            _Numbers(), before=Reading(consumed), global_batch=per_step, micro_batch=micro, dp_rank=rank, dp_size=size
        )
        for step in range(number):
            data = batches.next()
            assert data.samples == per_step and data.position == {
                "samples": consumed + (step + 1) * per_step,
                "read": {"numbers": (step + 1) * per_step},
            }
            for index, batch in enumerate(data.batches):
                gathered[step][index, rank] = batch.tokens[:, 0].tolist()
        assert batches.consumed_samples == consumed + number * per_step
    return [[sample for key in sorted(parts) for sample in parts[key]] for parts in gathered]


@given(
    micro=st.integers(1, 3),
    size=st.sampled_from([1, 2, 4]),
    accumulation=st.integers(1, 3),
    number=st.integers(1, 4),
    resumed=st.integers(0, 3),
)
def test_any_rank_count_and_any_resume_point_read_the_same_samples(
    micro: int, size: int, accumulation: int, number: int, resumed: int
) -> None:
    per_step = micro * size * accumulation
    whole = steps(0, number + resumed, micro, size, per_step)
    assert whole == [list(range(step * per_step, (step + 1) * per_step)) for step in range(number + resumed)]
    assert steps(resumed * per_step, number, micro, size, per_step) == whole[resumed:]
    assert steps(resumed * per_step, number, 1, 1, per_step) == whole[resumed:]


def test_weights_decide_the_mixture_and_default_to_tokens(corpus: Corpus) -> None:
    pair = ({"prefix": corpus.large}, {"prefix": corpus.small})
    tokens = [read_index_manifest(source["prefix"]).tokens for source in pair]
    datasets = corpus.build(corpus.config(*pair), (400, 5, 0))
    shares = [entry["weight"] for entry in datasets.corpus]
    assert shares == pytest.approx([count / sum(tokens) for count in tokens])
    counted = np.bincount([int(datasets.train[n]["dataset_id"]) for n in range(400)]) / 400
    assert counted == pytest.approx(shares, abs=0.01)
    weighted = [{**pair[0], "weight": 1.0}, {**pair[1], "weight": 3.0}]
    train = corpus.build(corpus.config(*weighted), (400, 5, 0)).train
    assert np.bincount([int(train[n]["dataset_id"]) for n in range(400)]).tolist() == [100, 300]
    with pytest.raises(DataError, match="some have none"):
        corpus.build(corpus.config(weighted[0], pair[1]))


def test_validation_is_capped_at_one_pass(corpus: Corpus) -> None:
    available = len(corpus.build(corpus.config(), (1, 1, 0)).valid or [])
    datasets = corpus.build(corpus.config(), (1, 10**6, 0))
    assert datasets.valid is not None and 0 < len(datasets.valid) == available
    assert corpus.build(corpus.config(), (1, 0, 0)).valid is None
    mixture = corpus.config({"prefix": corpus.large}, {"prefix": corpus.small}, split=(80.0, 20.0, 0.0))
    valid = corpus.build(mixture, (1, 10**6, 0)).valid
    seen = rows(valid, range(len(valid or [])))
    assert len(seen) > 50 and len({tuple(row) for row in seen}) >= len(seen) - 1


@pytest.mark.parametrize(
    ("samples", "fields", "what"),
    [
        ((10, 5, 0), {"split": (100.0, 0.0, 0.0)}, "gives that part nothing"),
        ((10, 5, 0), {"split": (9999.0, 1.0, 0.0)}, "not a single sequence"),
        ((10, 0, 5), {}, "gives that part nothing"),
    ],
)
def test_an_empty_part_is_refused(corpus: Corpus, samples: Any, fields: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        corpus.build(corpus.config(**fields), samples)
    assert caught.value.remedy


def test_bad_files_are_refused(corpus: Corpus, tokenizer_folder: Folder) -> None:
    with pytest.raises(DataError, match="another tokenizer"):
        build_datasets(corpus.config(), load_tokenizer(tokenizer_folder("bpe")), (1, 0, 0), 5)
    with pytest.raises(DataError, match="given twice"):
        corpus.build(corpus.config({"prefix": corpus.large}, {"prefix": corpus.large}))
    for suffix in (".bin", ".idx", ".manifest.json"):
        shutil.copyfile(f"{corpus.large}{suffix}", f"{corpus.large}-copy{suffix}")
    copy = corpus.large.with_name("large-copy")
    with pytest.raises(DataError, match="same tokens"):
        corpus.build(corpus.config({"prefix": corpus.large}, {"prefix": copy}))
    change_manifest(copy, eod=None)
    corpus.build(corpus.config({"prefix": copy}))
    with pytest.raises(DataError, match="cannot be kept apart"):
        corpus.build(corpus.config({"prefix": copy}, document_mask=True))
    change_manifest(copy, max_token_id=10**6)
    with pytest.raises(DataError, match="outside the vocabulary"):
        corpus.build(corpus.config({"prefix": copy}))
    for path in (bin_path(corpus.large), idx_path(corpus.large)):
        whole = path.read_bytes()
        path.write_bytes(whole[:-2])
        with pytest.raises(DataError, match="damaged"):
            corpus.build(corpus.config())
        path.unlink()
        with pytest.raises(DataError, match="incomplete"):
            corpus.build(corpus.config())
        path.write_bytes(whole)
    manifest_path(corpus.large).unlink()
    with pytest.raises(DataError, match="no manifest"):
        corpus.build(corpus.config())
    with pytest.raises(DataError, match="incomplete"):
        corpus.build(corpus.config({"prefix": corpus.large.with_name("nowhere")}))


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_garbage_of_the_same_size_is_named_before_it_is_trained_on(corpus: Corpus, kind: type[np.generic]) -> None:
    """Sizes and manifest fit, so the files look whole; ids say which document is not."""
    rewrite(corpus.large, kind)
    reader, path = IndexedReader(corpus.large), bin_path(corpus.large)
    train = corpus.build(corpus.config(), (1, 0, 0)).train
    for document, garbage in ((77, 640), (12, 65_535), (3, -1)):
        if garbage < 0 and kind is np.uint16:
            continue
        whole = path.read_bytes()
        tokens = np.frombuffer(whole, dtype=kind).copy()
        tokens[int(reader.offsets[document]) // tokens.itemsize + 2] = garbage
        path.write_bytes(tokens.tobytes())
        with pytest.raises(DataError, match="outside the vocabulary") as caught:
            Collator()(train, range(len(train)))
        assert f"{corpus.large}.bin" in caught.value.what and "data verify" in str(caught.value.remedy)
        assert f"id {garbage} in document {document}, 1 such ids" in str(caught.value.got)
        path.write_bytes(whole)
    Collator()(train, range(len(train)))


def rewrite(prefix: Path, kind: type[np.generic]) -> None:
    """The same tokens as another type; the manifest agrees."""
    reader = IndexedReader(prefix)
    builder = IndexedDatasetBuilder(str(bin_path(prefix)) + ".new", dtype=kind)
    for document in range(len(reader)):
        builder.add_document(torch.from_numpy(reader[document].astype(np.int64)), [int(reader.lengths[document])])
    builder.finalize(str(idx_path(prefix)))
    Path(str(bin_path(prefix)) + ".new").rename(bin_path(prefix))
    sizes = {"bin": bin_path(prefix).stat().st_size, "idx": idx_path(prefix).stat().st_size}
    change_manifest(prefix, dtype=np.dtype(kind).name, sizes=sizes)


def change_manifest(prefix: Path, **fields: object) -> None:
    path = manifest_path(prefix)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **fields}), encoding="utf-8")


def test_an_interrupted_cache_is_built_again(corpus: Corpus) -> None:
    config = corpus.config({"prefix": corpus.large}, {"prefix": corpus.small})
    expected = rows(corpus.build(config).train, range(50))
    cache = corpus.large.parent / "cache"
    markers = list(cache.glob("*/complete"))
    assert len(markers) == 2, "training and validation"
    for index in cache.glob("*/*.npy"):
        index.write_bytes(index.read_bytes()[:-5])
    for marker in markers:
        marker.unlink()
    assert rows(corpus.build(config).train, range(50)) == expected


def test_a_full_disk_for_the_cache_is_told(corpus: Corpus) -> None:
    def build() -> int:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
        try:
            corpus.build(corpus.config())
        except DataError as error:
            return 2 if "disk is full" in error.what else 1
        finally:  # what measures coverage writes a file of its own when the process ends
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        return 0

    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(build()))
    process.start()
    process.join(60)
    assert process.exitcode == 2


def test_other_data_under_the_same_name_gets_another_cache(corpus: Corpus) -> None:
    corpus.build(corpus.config())
    for suffix in (".bin", ".idx", ".manifest.json"):
        shutil.copyfile(f"{corpus.small}{suffix}", f"{corpus.large}{suffix}")
    changed = corpus.build(corpus.config())
    fresh = corpus.build(corpus.config({"prefix": corpus.small}))
    assert rows(changed.train, range(50)) == rows(fresh.train, range(50))


def _rank(rank: int, size: int, folder: Path, config: DataConfig) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    datasets = build_datasets(config, load_tokenizer(config.tokenizer), (60, 5, 0), 5)
    (folder / f"rank{rank}").write_text(digest(datasets), encoding="utf-8")
    torch.distributed.destroy_process_group()


def digest(datasets: Datasets) -> str:
    assert datasets.valid is not None
    parts: Sequence[list[list[int]]] = (rows(datasets.train, range(60)), rows(datasets.valid, range(5)))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@pytest.mark.parametrize("mixed", [False, True])
def test_ranks_share_one_build(corpus: Corpus, tmp_path: Path, mixed: bool) -> None:
    sources = [{"prefix": corpus.large}, {"prefix": corpus.small}] if mixed else []
    config = corpus.config(*sources, cache_dir=tmp_path / "shared-cache")
    context = multiprocessing.get_context("fork")  # the heavy imports are paid once
    ranks = [context.Process(target=_rank, args=(rank, 2, tmp_path, config)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(90)
    assert [process.exitcode for process in ranks] == [0, 0]
    alone = digest(corpus.build(config.model_copy(update={"cache_dir": None}), (60, 5, 0)))
    assert {(tmp_path / f"rank{rank}").read_text(encoding="utf-8") for rank in range(2)} == {alone}


def test_validation_is_the_same_for_every_seed_and_training_is_not(corpus: Corpus) -> None:
    config = corpus.config({"prefix": corpus.large})
    tokenizer = load_tokenizer(config.tokenizer)
    one, other = (build_datasets(config, tokenizer, (40, 5, 0), seed) for seed in (1, 2))
    assert rows(one.valid, range(5)) == rows(other.valid, range(5))
    assert rows(one.train, range(40)) != rows(other.train, range(40))
