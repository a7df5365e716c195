"""Small runs for the tests of this folder: one process a device trains them all, and a configuration once."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gpu.workers import Ran, Worker
from rehearsal import REHEARSED, Losses, Train

from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess

RUN = """
run: {{dir: {folder}/run, seed: 3}}
model: {{num_layers: 4, hidden_size: 128, ffn_hidden_size: 384, num_attention_heads: 4, num_query_groups: 2,
        vocab_size: 2048, max_position_embeddings: 128}}
data: {{tokenizer: {tokenizer}, sources: [{{prefix: {folder}/corpus}}], split: [90, 10, 0], sequence_length: 128}}
optim: {{lr: 1.0e-3}}
training: {{steps: 8, global_batch_size: 8, micro_batch_size: 4}}
eval: {{samples: 8}}
checkpoint: {{interval: 4}}
logging: {{console: false, tensorboard: false}}
"""


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder, korean) -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("gpu")
    tokenizer = tokenizer_folder("unigram")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in korean(2000, 1)), encoding="utf-8")
    preprocess(PreprocessOptions(inputs=(corpus,), tokenizer=tokenizer, output=folder / "corpus"))
    path = folder / "run.yaml"
    path.write_text(RUN.format(folder=folder, tokenizer=tokenizer), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train(run_file: Path) -> Iterator[Train]:
    """``train(run_dir, *words, device="cuda")``: trains, or continues, the run of a directory."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def train_in(run_dir: Path, *words: str, device: str = "cuda") -> Ran:
            place = "cpu" if REHEARSED else device
            if place not in workers:
                workers[place] = stack.enter_context(Worker(place))
            ran = workers[place].train(run_file, run_dir, words)
            assert ran.code == 0, ran.log
            return ran

        yield train_in


@pytest.fixture(scope="session")
def trained(train: Train, run_file: Path) -> Losses:
    """``trained(*words, device="cuda")``: losses of a run from its beginning; one of the same words is not repeated."""
    known: dict[tuple[str, ...], list[float]] = {}

    def losses(*words: str, device: str = "cuda") -> list[float]:
        key = (device, *words)
        if key not in known:
            known[key] = train(
                run_file.parent / f"run_{len(known)}", "checkpoint.interval=0", *words, device=device
            ).losses
        return known[key]

    return losses
