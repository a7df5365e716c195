"""Packs: every row once an epoch, whole, in its own document; the same plan everywhere; filler instead of padding."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ko.config import DataConfig
from megatron_ko.data.chat.preprocess import ChatOptions, preprocess_chat
from megatron_ko.data.tokenizer.chat_template import preset_source, set_template
from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokens.marked import MarkedReader
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.data.training.batch import Collator
from megatron_ko.data.training.packing import OPEN_PACKS, plan_packs
from megatron_ko.data.training.packs import PackedDataset
from megatron_ko.data.training.pretrain import build_datasets
from megatron_ko.errors import DataError

LENGTH = 128


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=300), st.integers(0, 3), st.integers(0, 2))
def test_every_row_is_in_one_pack_and_no_pack_is_too_full(lengths: list[int], seed: int, epoch: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    plan = plan_packs(sizes, 50, seed, epoch)
    assert sorted(plan.rows.tolist()) == list(range(len(lengths)))
    held = [int(sizes[plan.pack(number)].sum()) for number in range(len(plan))]
    assert all(0 < size <= 50 for size in held) and (50 - np.array(held, dtype=np.int64) == plan.missing).all()
    again = plan_packs(sizes, 50, seed, epoch)
    assert (again.rows == plan.rows).all() and (again.starts == plan.starts).all()


def test_packs_are_full_and_another_epoch_packs_anew() -> None:
    """The distribution of chat rows that published figures are about: median 320, at 4,096."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(320), 0.8, 20_000)), 8, 4096).astype(np.int64)
    first, second = (plan_packs(lengths, 4096, 1, epoch) for epoch in (0, 1))
    for plan in (first, second):
        assert lengths.sum() / (len(plan) * 4096) > 0.99
    assert (first.rows != second.rows).any()
    # Streaming: what is packed at once comes from one stretch of the order, not from the whole epoch.
    assert OPEN_PACKS == 64


@pytest.fixture(scope="module")
def corpus(tokenizer_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    set_template(copytree(tokenizer_folder("byte-bpe"), folder / "tok"), preset_source("chatml"))
    records = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "답 " * (n % 9 + 1)}]}
        for n in range(120)
    ]
    pairs = [{"prompt": f"{n}?", "chosen": "네 " * (n % 4 + 1), "rejected": "아니요"} for n in range(60)]
    texts = [{"text": f"{n}번째 글. " * 20} for n in range(60)]
    for name, rows in (("chat", records), ("pairs", pairs), ("text", texts)):
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    for name in ("chat", "pairs"):
        preprocess_chat(ChatOptions((folder / f"{name}.jsonl",), folder / "tok", folder / name, name == "pairs"))
    preprocess(PreprocessOptions((folder / "text.jsonl",), folder / "tok", folder / "text"))
    return folder


def config(corpus: Path, *names: str, **more: object) -> tuple[DataConfig, Tokenizer]:
    sources = tuple({"prefix": corpus / name} for name in names)
    given = {"tokenizer": corpus / "tok", "sources": sources, "sequence_length": LENGTH, "split": (90.0, 10.0, 0.0)}
    return DataConfig.model_validate({**given, **more}), load_tokenizer(corpus / "tok")


def build(corpus: Path, *names: str, kind: str = "sft", samples: int = 40, seed: int = 1, **more: object):
    data, tokenizer = config(corpus, *names, **more)
    return build_datasets(data, tokenizer, (samples, 3, 0), seed, kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), [("chat", "sft"), ("pairs", "dpo")])
def test_a_sample_holds_whole_documents_and_labels_within_them(name: str, kind: str, corpus: Path) -> None:
    packs: PackedDataset = build(corpus, name, kind=kind).train._dataset
    marked = MarkedReader(corpus / name)
    seen = []
    for index in range(len(packs.plan(0))):
        sample = packs[index]
        for place, document in enumerate(packs.documents(index)):
            here = sample["documents"] == place
            ids, marks = torch.from_numpy(marked.ids(document).astype(np.int64)), marked.marks(document)
            assert torch.equal(sample["tokens"][here], ids[:-1]) and torch.equal(sample["labels"][here], ids[1:])
            assert sample["loss_mask"][here].tolist() == (marks[1:] > 0).astype(float).tolist()
            assert int(sample["verdicts"][place]) == marks.max()
            assert int(sample["trained"][place]) == int(sample["loss_mask"][here].sum()) > 0
            seen.append(document)
        padding = sample["documents"] == len(sample["verdicts"])
        assert not sample["loss_mask"][padding].any()
        assert packs.trained_tokens(index) == int(sample["loss_mask"].sum())
    each = 2 if name == "pairs" else 1
    assert sorted(seen) == list(range(round(0.9 * len(marked)) * each)), "the training part, once"
    if name == "pairs":
        verdicts = [packs[index]["verdicts"].tolist() for index in range(5)]
        assert all(found == [1, 2] * (len(found) // 2) for found in verdicts)


def test_epochs_follow_each_other_and_a_sample_does_not_depend_on_how_many_are_wanted(corpus: Path) -> None:
    short, long = (build(corpus, "chat", samples=samples).train for samples in (30, 90))
    for index in (0, 29):
        assert torch.equal(short[index]["tokens"], long[index]["tokens"])
    packs: PackedDataset = long._dataset
    epochs = [packs.locate(index)[0] for index in range(90)]
    assert epochs == sorted(epochs) and epochs[-1] >= 2
    other = build(corpus, "chat", samples=30, seed=2).train
    assert any(not torch.equal(short[index]["tokens"], other[index]["tokens"]) for index in range(5))
    valid = [build(corpus, "chat", seed=seed).valid for seed in (1, 2)]
    assert torch.equal(valid[0][0]["tokens"], valid[1][0]["tokens"]), "validation does not depend on the seed"


def test_filler_leaves_no_padding_and_reads_its_text_in_order(corpus: Path) -> None:
    filled = build(corpus, "chat", filler=corpus / "text").train
    packs: PackedDataset = filled._dataset
    pieces = []
    for index in range(6):
        sample = filled[index]
        end = sample["documents"] == len(sample["verdicts"])
        assert sample["loss_mask"][end].all()
        assert packs.trained_tokens(index) == int(sample["loss_mask"].sum())
        pieces.append(sample["tokens"][end])
    stream = torch.cat(pieces)
    held = np.fromfile(corpus / "text.bin", dtype=np.uint16).astype(np.int64)
    assert torch.equal(stream, torch.from_numpy(held[: len(stream)])) and len(stream) > 0


def test_a_filler_of_conversations_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"no text(.|\n)*chat"):
        build(corpus, "chat", filler=corpus / "chat")


def test_replay_is_weighted_by_trained_tokens(corpus: Path) -> None:
    weighted = tuple({"prefix": corpus / name, "weight": weight} for name, weight in (("chat", 0.7), ("text", 0.3)))
    data, tokenizer = config(corpus, sources=weighted)
    train = build_datasets(data, tokenizer, (400, 3, 0), 1, kind="sft").train
    tokens = train.tokens_by_source(range(400), LENGTH)
    assert tokens["chat"] / sum(tokens.values()) == pytest.approx(0.7, abs=0.02)
    batch = Collator()(train, range(8))
    assert batch.documents is not None and batch.answers is not None
    assert int(batch.loss_mask.sum()) == sum(train.tokens_by_source(range(8), LENGTH).values())


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        (("text",), "sft", "needs a source of conversations"),
        (("chat",), "lm", "objective.kind=lm cannot train"),
        (("chat",), "dpo", "objective.kind=dpo cannot train"),
        (("pairs",), "sft", "objective.kind=sft cannot train"),
    ],
)
def test_an_objective_refuses_what_it_cannot_train_on(
    names: tuple[str, ...], kind: str, reason: str, corpus: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        build(corpus, *names, kind=kind)


def test_rows_that_do_not_fit_and_another_template_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"do not fit into a sample(.|\n)*--sequence-length 16"):
        build(corpus, "chat", sequence_length=16)
    other = copytree(corpus, tmp_path / "other")
    set_template(other / "tok", preset_source("chatml") + "{# changed #}")
    with pytest.raises(DataError, match="another chat template"):
        build(other, "chat")
