"""Generation from checkpoints of other layouts, against transformers on the same weights and against recomputation."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from megatron.core import dist_checkpointing
from oracle import assemble, pieces_of, to_transformers
from patience import PATIENCE
from typer.testing import CliRunner

from megatron_ko.artifacts import checkpoints
from megatron_ko.cli.main import app
from megatron_ko.config import RunConfig
from megatron_ko.config.load import build
from megatron_ko.data.tokenizer import TokenizerOptions, load_tokenizer, train_tokenizer
from megatron_ko.errors import CheckpointError, DataError, TokenizerError
from megatron_ko.eval.generate import Prompt, continue_tokens, document_prompt, generate
from megatron_ko.eval.load import Loaded, load_run
from megatron_ko.eval.sampling import Sampler, Sampling
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.inference import blueprint_of
from megatron_ko.models.weights import sharded_weights
from megatron_ko.parallel.groups import initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks
from megatron_ko.train.tensor_files import InProcessSave

VOCABULARY = 397  # prime, so that every tensor-parallel size pads it differently
CONTEXT = 96
TEXT = """한국어 말뭉치는 작지만 문장은 여럿이다. 봄에는 꽃이 피고 여름에는 비가 온다.
가을 하늘은 높고 푸르며, 겨울에는 눈이 내린다. 서울에서 부산까지 기차로 두 시간 반이 걸린다.
프로그램은 print("안녕하세요")로 시작하고, 숫자 1234567890과 기호 +-*/=를 쓴다.
"""
PROMPTS = ["서울에서", "봄에는 꽃이 피고 여름에는", "", "가을"]


def documents(loaded: Loaded, texts: list[str]) -> list[Prompt]:
    return [document_prompt(loaded, text) for text in texts]


def make_config(folder: Path, dtype: str, parallel: dict[str, int], **more: Any) -> RunConfig:
    model = {
        "num_layers": 4, "hidden_size": 96, "ffn_hidden_size": 192, "num_attention_heads": 12, "num_query_groups": 6,
        "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "init_std": 0.15, "vocab_multiple": 8,
        "tie_embeddings": False, **more,
    }  # fmt: skip
    tree = {
        "run": {"dir": str(folder), "name": "생성", "seed": 11},
        "model": model,
        "parallel": parallel,
        "precision": {"dtype": dtype},
        "data": {
            "tokenizer": str(folder.parent / "tokenizer"),
            "sources": [{"prefix": "corpus"}],
            "sequence_length": 32,
        },
        "optim": {"lr": 1e-3},
        "training": {"steps": 4, "global_batch_size": 4},
    }
    return build(RunConfig, tree, origin="test")


def write_checkpoint(config: RunConfig, step: int, fingerprint: str) -> None:
    """What one rank does to save initial weights; every rank of the layout runs it."""
    groups = initialise(config.parallel, PATIENCE)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    temporary = config.run.dir / "temporary"
    if groups.rank == 0:
        (temporary / "model").mkdir(parents=True)
    torch.distributed.barrier()
    dist_checkpointing.save(sharded_weights(chunks), str(temporary / "model"), InProcessSave())
    if groups.rank > 0:
        return
    written = [path for path in temporary.rglob("*") if path.is_file()]
    manifest = checkpoints.Manifest(
        step=step, samples=0, tokens=0,
        files={str(path.relative_to(temporary)): checkpoints.record_file(path) for path in written},
        layout={}, state={}, metrics={}, config=config.model_dump(mode="json"), config_sha256="", tokenizer=fingerprint,
        versions={}, created=time.time(),
    )  # fmt: skip
    final = config.run.dir / "checkpoints"
    final.mkdir(exist_ok=True)
    checkpoints.publish(temporary.rename(final / ".tmp-written"), manifest)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and runs of the same weights, saved under different layouts and precisions.

    "windows" is another network, whose layers see 7 earlier tokens, or all, in turns.
    """
    folder = tmp_path_factory.mktemp("generate")
    (folder / "corpus.txt").write_text(TEXT * 20, encoding="utf-8")
    train_tokenizer([folder / "corpus.txt"], folder / "tokenizer", TokenizerOptions("byte-bpe", VOCABULARY))
    fingerprint = load_tokenizer(folder / "tokenizer").fingerprint
    layouts = {"tensor3": {"tensor": 3}, "grid": {"tensor": 2, "pipeline": 2}, "half": {"tensor": 2}}
    layouts["windows"] = {"context": 2}
    for name, layout in layouts.items():
        model = {"family": "qwen3", "windows": [7, None, 7, None]} if name == "windows" else {}
        config = make_config(folder / name, "bf16" if name == "half" else "fp32", layout, **model)
        config.run.dir.mkdir()
        assert run_ranks(write_checkpoint, config.parallel.model_size, (config, 3, fingerprint), threads=1) == 0
    return folder


def in_one_rank(check: Any, *args: Any) -> None:
    """Run a check in a process of its own, because a process can be in one world only."""
    assert run_ranks(check, 1, args, threads=1) == 0


def greedy(loaded: Loaded, prompts: list[list[int]], number: int) -> list[list[int]]:
    """Greedy continuations of exactly ``number`` tokens, through the cache and in one batch."""
    grown: list[list[int]] = [[] for _ in prompts]
    for chosen in continue_tokens(loaded, prompts, Sampler(Sampling(temperature=0), len(prompts)), number):
        for row, token in chosen.items():
            grown[row].append(token)
    return [tokens[:number] for tokens in grown]


def recomputed(loaded: Loaded, prompt: list[int], number: int) -> list[int]:
    """The same without a cache: the whole text again for every token."""
    tokens = torch.tensor([prompt])
    for _ in range(number):
        positions = torch.arange(tokens.shape[1]).unsqueeze(0)
        with torch.inference_mode():
            logits = loaded.model(tokens, positions, None)[:, -1, :VOCABULARY]
        tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return tokens[0, len(prompt) :].tolist()


def check_greedy(run: Path) -> None:
    loaded = load_run(run)
    prompts = [[loaded.tokenizer.eod, *loaded.tokenizer.encode(text)] for text in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) > 2
    ours = greedy(loaded, prompts, 24)
    assert len({token for tokens in ours for token in tokens}) > 10, "a test on one repeated token proves little"
    peer = to_transformers(loaded.network, assemble(pieces_of([loaded.model])))
    for prompt, tokens in zip(prompts, ours, strict=True):
        assert tokens == recomputed(loaded, prompt, 24)
        theirs = peer.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert tokens == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("run", ["tensor3", "grid", "windows"])
def test_greedy_equals_recomputation_and_transformers(work: Path, run: str) -> None:
    in_one_rank(check_greedy, work / run)


def check_half(work: Path) -> None:
    half, full = load_run(work / "half"), load_run(work / "grid")
    theirs = full.model.state_dict()
    for name, value in half.model.state_dict().items():
        if value is not None:
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, theirs[name.removeprefix("module.")].bfloat16()), name
    texts = generate(half, documents(half, PROMPTS), Sampling(max_new_tokens=10, seed=3))
    assert all(completion.tokens for completion in texts)


def test_experts_of_generation_and_conversion_drop_nothing(tmp_path: Path) -> None:
    """A capacity is shared by what is computed together: a text would depend on those beside it."""
    moe = {"num_experts": 4, "top_k": 2, "capacity_factor": 0.5}
    config = make_config(tmp_path, "fp32", {}, family="mixtral", moe=moe)
    for served in (Blueprint.of(config).for_inference.model, blueprint_of(config.model).model):
        assert served.moe is not None and config.model.moe is not None
        assert served.moe.capacity_factor is None and served.moe.top_k == 2
        assert config.model.moe.capacity_factor == 0.5 and served.dropless == served


def test_half_precision_runs_are_read_as_they_are(work: Path) -> None:
    in_one_rank(check_half, work)


def check_texts(run: Path) -> None:
    loaded = load_run(run)
    pieces: list[str] = []
    sampling = Sampling(max_new_tokens=30, temperature=1.0, top_p=0.95, seed=4)
    together = generate(loaded, documents(loaded, PROMPTS), sampling, pieces.append)
    assert generate(loaded, documents(loaded, PROMPTS), sampling) == together
    assert generate(loaded, documents(loaded, PROMPTS[:1]), sampling) == together[:1], (
        "neighbours must not change a continuation"
    )
    assert "".join(pieces) == together[0].text
    other = generate(
        loaded, documents(loaded, PROMPTS), Sampling(max_new_tokens=30, temperature=1.0, top_p=0.95, seed=40)
    )
    assert [c.text for c in other] != [c.text for c in together]
    for completion in together:
        ids = loaded.tokenizer.encode(completion.prompt) + completion.tokens
        assert loaded.tokenizer.decode(ids) == completion.prompt + completion.text
        assert loaded.tokenizer.eod not in completion.tokens
        assert (completion.stop == "max_new_tokens") == (len(completion.tokens) == 30)


def test_texts_are_reproducible_and_streamed(work: Path) -> None:
    in_one_rank(check_texts, work / "grid")


def check_stops(run: Path) -> None:
    loaded = load_run(run)
    full = generate(loaded, documents(loaded, ["봄"]), Sampling(max_new_tokens=1000, temperature=0))[0]
    start = 1 + len(loaded.tokenizer.encode("봄"))
    assert full.stop == "context" and len(full.tokens) == CONTEXT - start
    with pytest.raises(DataError, match="context"):
        generate(loaded, documents(loaded, [TEXT * 3]), Sampling())
    row = next(i for i in range(3, 20) if full.tokens[i] not in full.tokens[:i])
    output, eod = loaded.model.output_layer.weight.data, loaded.tokenizer.eod
    output[[eod, full.tokens[row]]] = output[[full.tokens[row], eod]]
    ended = generate(loaded, documents(loaded, ["봄"]), Sampling(max_new_tokens=40, temperature=0))[0]
    assert (ended.stop, ended.tokens) == ("end_of_document", full.tokens[:row])
    assert len(output) == VOCABULARY + 3
    output[VOCABULARY] = 100 * output[0]
    output[VOCABULARY + 1] = -100 * output[0]  # one of the two rows has by far the largest logit
    assert generate(loaded, documents(loaded, ["봄"]), Sampling(max_new_tokens=40, temperature=0))[0] == ended


def test_ends_and_padding_rows(work: Path) -> None:
    in_one_rank(check_stops, work / "tensor3")


def check_refusals(work: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_run(work)
    with pytest.raises(CheckpointError, match="no checkpoint of step 999"):
        load_run(work / "grid", step=999)
    other = work / "other"
    train_tokenizer([work / "corpus.txt"], other, TokenizerOptions("byte-bpe", VOCABULARY - 1))
    with pytest.raises(TokenizerError, match="trained with"):
        load_run(work / "grid", tokenizer_dir=other)


def test_what_cannot_be_trusted_is_refused(work: Path) -> None:
    in_one_rank(check_refusals, work)


def printed_by(words: list[str]) -> str:
    """What the program prints on standard output."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_verb(work: Path) -> None:
    command = [sys.executable, "-m", "megatron_ko.cli.main", "generate", str(work / "grid"), "--temperature", "0"]
    command += ["--max-new-tokens", "8"]
    one = subprocess.run([*command, "--prompt", "봄에는"], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert one.stdout.startswith("봄에는")
    assert "step 3, greedy" in one.stderr
    more = ["--prompt", "봄에는", "--prompt", "가을", "--json", "--seed", "5"]
    printed = json.loads(isolated(printed_by, [*command[3:], *more]))  # forked: PyTorch is imported already
    assert (printed["step"], printed["seed"]) == (3, 5)
    assert [c["prompt"] for c in printed["completions"]] == ["봄에는", "가을"]
    assert "봄에는" + printed["completions"][0]["text"] == one.stdout.removesuffix("\n")
