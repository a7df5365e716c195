"""A model that really speaks through the commands of docs/convert.md and docs/gguf.md; and mistakes made on purpose."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import smollm2
import torch
from isolated import isolated
from patience import PATIENCE
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from megatron_ko.artifacts.native import WEIGHTS, Pretrained, find_pretrained
from megatron_ko.convert import hf_export, hf_import
from megatron_ko.convert.mapping import MappedBlock
from megatron_ko.convert.native import NativeReader, TensorBlock, write_native
from megatron_ko.errors import ConvertError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")  # a language that it reads, of things it never saw
# Its first token leads by 2.9 in logits; "the capital of France" by 0.06, and quantised files answer that in French.
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
RUN = """
run: {{dir: {folder}/run, name: smollm2, seed: 7}}
model: {{from: {folder}/native/model.yaml}}
precision: {{dtype: fp32}}
data: {{tokenizer: {folder}/native/tokenizer, sources: [{{prefix: {folder}/corpus}}], split: [100, 0, 0], sequence_length: 64}}
optim: {{lr: 1.0e-4, schedule: wsd, warmup_steps: 2}}
training: {{steps: 20, global_batch_size: 2, micro_batch_size: 1}}
eval: {{samples: 0}}
checkpoint: {{interval: 20, start_from: {folder}/native}}
parallel: {{pipeline: 2}}
launch: {{ranks_per_node: 2, threads_per_rank: 1}}
logging: {{tensorboard: false}}
"""  # noqa: E501
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def megatron_ko(*words: object) -> dict[str, Any]:
    """A command, and the last line of what it prints as JSON."""
    command = [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * PATIENCE, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    last = done.stdout.splitlines()[-1]
    found: dict[str, Any] = json.loads(last) if last.startswith("{") else {}
    return found


def gates(told: dict[str, Any]) -> dict[str, str]:
    assert all(gate["ok"] for gate in told["gates"])
    return {gate["name"]: gate["found"] for gate in told["gates"]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def published() -> Path:
    """The folder of `make smollm2`."""
    folder = ROOT / "runs/smollm2"
    try:
        smollm2.make(folder)
    except smollm2.UnavailableError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def native(published: Path, work: Path) -> Path:
    """Imported as it is published, with the full proof."""
    told = megatron_ko("convert", "hf-import", published, work / "native", "--json")
    found = gates(told)
    assert "GPT2Tokenizer gives other ids" in found["class of the tokenizer"]
    assert told["top1"] == 1.0 and "greedy generation" in found
    return work / "native"


@pytest.fixture(scope="module")
def run(native: Path, work: Path) -> Path:
    """Twenty steps on two pipeline ranks."""
    (work / "corpus.jsonl").write_text(json.dumps({"text": TEXT}), encoding="utf-8")
    options = ("--tokenizer", native / "tokenizer", "--output", work / "corpus", "--unencodable", "replace")
    megatron_ko("data", "preprocess", "--input", work / "corpus.jsonl", *options)
    (work / "run.yaml").write_text(RUN.format(folder=work), encoding="utf-8")
    megatron_ko("train", work / "run.yaml")
    return work / "run"


@pytest.fixture(scope="module")
def exported(run: Path, work: Path) -> Path:
    gates(megatron_ko("convert", "hf-export", run, work / "hf", "--dtype", "bfloat16", "--proof", "quick", "--json"))
    return work / "hf"


@pytest.fixture(scope="module")
def experts(native: Path, work: Path) -> Path:
    words = ("--experts", 4, "--top-k", 2, "--proof", "quick", "--json")
    gates(megatron_ko("convert", "upcycle", native, work / "experts", *words))
    return work / "experts"


@cache
def tokenizer_of(folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def transformers_greedy(folder: Path, prompt: list[int], number: int) -> list[int]:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = network.generate(torch.tensor([prompt]), max_new_tokens=number, do_sample=False)
    return made[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def test_it_generates_what_transformers_does(native: Path, published: Path) -> None:
    words = ("--prompt", "The Moon is", "--temperature", 0, "--max-new-tokens", 40, "--json")
    (found,) = megatron_ko("generate", native, *words)["completions"]
    tokenizer = tokenizer_of(published)
    prompt = [tokenizer.eos_token_id, *tokenizer("The Moon is")["input_ids"]]  # a prompt begins a document
    assert len(found["tokens"]) == 40
    assert found["tokens"] == isolated(transformers_greedy, published, prompt, 40)


def test_it_trains_on_and_goes_back_to_transformers(run: Path, exported: Path, published: Path) -> None:
    assert len((run / "metrics/train.jsonl").read_text().splitlines()) == 20
    before, after = (isolated(loss_in_transformers, folder) for folder in (published, exported))
    assert after < before - 0.3, (before, after)  # of a text that it has been trained on
    command = [sys.executable, "-m", "megatron_ko.cli.main", "lineage", "show", str(exported)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert "step 20" in shown and str(ROOT / "runs/smollm2") in shown and "changed after" not in shown


@torch.no_grad()
def loss_in_transformers(folder: Path) -> float:
    ids = tokenizer_of(folder)(TEXT, return_tensors="pt")["input_ids"][:, :256]
    loss: float = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids, labels=ids).loss.item()
    return loss


def test_it_answers_in_llama_cpp(published: Path, work: Path) -> None:
    if find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not installed: make test-gguf compiles it")
    told = megatron_ko("convert", "gguf", published, work / "gguf", "--types", "f16,q8_0,q4_k_m", "--json")
    assert [one["kind"] for one in told["files"]] == ["f16", "q8_0", "q4_k_m"] and not told["refused"]
    assert "21 bytes have no token" in gates(told)["ids of text"]
    for one in told["files"]:
        answer, ended = isolated(answer_of_llama_cpp, work / "gguf" / one["name"], published)
        assert "Tokyo" in answer and ended, (one["kind"], answer)


def answer_of_llama_cpp(file: Path, folder: Path) -> tuple[str, bool]:
    from megatron_ko.convert.gguf.llama_cpp import LlamaModel

    text = tokenizer_of(folder).apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    with LlamaModel(file, context=128) as model:
        tokens = model.generate(model.tokenise(text, parse_special=True), 40)
        return b"".join(map(model.piece, tokens)).decode("utf-8"), model.ends(tokens[-1])


def test_experts_of_real_weights_are_exported(experts: Path, work: Path) -> None:
    told = megatron_ko("convert", "hf-export", experts, work / "experts-hf", "--proof", "quick", "--json")
    assert told["top1"] == 1.0
    assert json.loads((work / "experts-hf/config.json").read_text())["num_local_experts"] == 4


def refused(convert: Callable[..., object], *given: object) -> str:
    """What a conversion says that has to fail."""
    try:
        convert(*given)
    except ConvertError as error:
        return str(error)
    return "it was accepted"


def test_one_projection_scaled_by_a_thousandth_is_caught(
    native: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.7.self_attn.q_proj.weight"
    honest = hf_export._tensors

    def scaled(*given: Any) -> Iterator[tuple[str, Tensor]]:
        for other, tensor in honest(*given):
            yield other, tensor * 1.001 if other == name else tensor

    monkeypatch.setattr(hf_export, "_tensors", scaled)
    said = isolated(refused, hf_export.export_hf, find_pretrained(native), work / "scaled", "float32")
    assert f"1 differ: {name}" in said and not (work / "scaled").exists()


def test_two_experts_that_changed_places_are_caught(experts: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = hf_export.blocks

    def swapped(*given: Any) -> Iterator[MappedBlock]:
        """Experts 1 and 2 of layer 5 under each other's names."""
        other = {(5, 1): (5, 2), (5, 2): (5, 1)}
        found = list(honest(*given))
        named = {(block.native, block.index): block.others for block in found}
        for block in found:
            yield replace(block, others=named[block.native, other.get(block.index, block.index)])

    source = isolated(with_different_experts, find_pretrained(experts), work / "different")
    monkeypatch.setattr(hf_export, "blocks", swapped)
    said = isolated(refused, hf_export.export_hf, source, work / "swapped")
    assert "6 differ: model.layers.5.block_sparse_moe.experts.1.w1.weight" in said and "experts.2.w1.weight" in said
    assert not (work / "swapped").exists()


def with_different_experts(source: Pretrained, folder: Path) -> Pretrained:
    """An upcycled model whose experts are no longer copies of one another."""
    reader = NativeReader(source.weights)
    parts = []
    for key, shape in reader.shapes.items():
        leading = (2 if ".experts.experts." in key else 1) if key.startswith("decoder.layers.") else 0
        for index in product(*map(range, shape[:leading])):
            factor = 1 + index[1] / 8 if leading == 2 else 1.0
            make = lambda key=key, index=index, factor=factor: reader.read(key, index) * factor  # noqa: E731
            parts.append(TensorBlock(key, index, shape[leading:], reader.dtype(key), make))
    (folder / WEIGHTS).mkdir(parents=True)
    write_native(folder / WEIGHTS, parts, reader.shapes)
    return replace(source, weights=folder / WEIGHTS)


def import_with(change: Callable[[dict[str, Any]], None], source: Path, output: Path, patch: pytest.MonkeyPatch) -> str:
    """What an import says that changes tokenizer.json on the way."""
    honest = hf_import.copy_tokenizer

    def copy(one: Path, other: Path) -> None:
        honest(one, other)
        content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
        change(content)
        (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    patch.setattr(hf_import, "copy_tokenizer", copy)
    said = isolated(refused, hf_import.import_hf, source, output)
    assert not output.exists()
    return said


def test_a_missing_normaliser_is_caught(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "normalised"
    source.mkdir()
    for path in published.iterdir():
        (source / path.name).symlink_to(path)
    content = json.loads((published / "tokenizer.json").read_text(encoding="utf-8"))
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").write_text(json.dumps({**content, "normalizer": {"type": "NFC"}}), encoding="utf-8")
    said = import_with(lambda content: content.update(normalizer=None), source, tmp_path / "native", monkeypatch)
    assert "differs in normalizer" in said and "transformers gives the same ids" in said.splitlines()[0], said


def test_a_wrong_merge_is_caught(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        merges[40_000], merges[40_001] = merges[40_001], merges[40_000]

    said = import_with(swap, published, tmp_path / "native", monkeypatch)
    assert "tokenizer.json differ" in said.splitlines()[0] and "differs in model" in said, said
