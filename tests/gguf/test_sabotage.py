"""Mistakes that exporters make, made on purpose: each is caught by a gate, named, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_tests import Folder
from safetensors.torch import load_file, save_file

from megatron_ko.artifacts import lineage
from megatron_ko.config import ModelConfig
from megatron_ko.convert.gguf import export as gguf_export
from megatron_ko.convert.gguf import write as gguf
from megatron_ko.convert.gguf.export import export_gguf
from megatron_ko.convert.gguf.vocabulary import GgufVocabulary, read_vocabulary
from megatron_ko.errors import ConvertError

Patch = pytest.MonkeyPatch


def refused(source: Path, output: Path, *named: str, kinds: tuple[str, ...] = ("f32",)) -> None:
    """The export fails, its message names all of these, and no file is left."""
    before = sorted(path.name for path in output.parent.iterdir())
    with pytest.raises(ConvertError) as caught:
        export_gguf(source, output, kinds)
    message = str(caught.value)
    assert all(name in message for name in named), message
    assert sorted(path.name for path in output.parent.iterdir()) == before


def swap_gate_and_up(patch: Patch) -> None:
    swapped = {"mlp.gate_proj": "ffn_up", "mlp.up_proj": "ffn_gate"}
    patch.setattr(gguf, "_LAYER", gguf._LAYER | swapped)


def forget_the_permutation(patch: Patch) -> None:
    patch.setattr(gguf, "pair_rows", lambda weight, heads: weight)


def wrong_constant(**fields: Any) -> Callable[[Patch], None]:
    def sabotage(patch: Patch) -> None:
        honest = gguf._describe
        patch.setattr(gguf, "_describe", lambda writer, model: honest(writer, changed(model, fields)))

    return sabotage


def changed(model: ModelConfig, fields: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate({**model.model_dump(), **fields})


def spoil(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    def sabotage(patch: Patch) -> None:
        honest = gguf.read_stored
        spoilt = lambda stored, *given: (change if stored.name == name else torch.clone)(honest(stored, *given))  # noqa: E731
        patch.setattr(gguf, "read_stored", spoilt)

    return sabotage


def with_key(add: Callable[[Any], None]) -> Callable[[Patch], None]:
    def sabotage(patch: Patch) -> None:
        honest = gguf._describe
        patch.setattr(gguf, "_describe", lambda writer, model: (honest(writer, model), add(writer)))

    return sabotage


def both(*sabotages: Callable[[Patch], None]) -> Callable[[Patch], None]:
    def sabotage(patch: Patch) -> None:
        for one in sabotages:
            one(patch)

    return sabotage


def a_percent_of_a_row(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.clone()
    weight[5] *= 1.01
    return weight


def forget_a_tensor(name: str) -> Callable[[Patch], None]:
    def sabotage(patch: Patch) -> None:
        honest = gguf.plan_tensors
        without = lambda *given: [stored for stored in honest(*given) if stored.name != name]  # noqa: E731
        patch.setattr(gguf, "plan_tensors", without)

    return sabotage


@pytest.mark.parametrize(
    ("sabotage", "named"),
    [
        (swap_gate_and_up, ("values", "blk.0.ffn_gate.weight does not hold", "logits", "greedy generation")),
        (forget_the_permutation, ("values", "blk.0.attn_k.weight does not hold", "logits", "KL divergence")),
        (wrong_constant(norm_eps=1e-3), ("layer_norm_rms_epsilon", "config.json says 1e-05", "logits")),
        (wrong_constant(rope={"theta": 6e4}), ("rope.freq_base", "config.json says 50000.0", "logits")),
        (forget_a_tensor("blk.1.ffn_up.weight"), ("blk.1.ffn_up.weight",)),
        (forget_a_tensor("output.weight"), ("f32: tensors", "output.weight is missing", "logits")),
        (
            both(wrong_constant(max_position_embeddings=4096), with_key(lambda writer: writer.add_sliding_window(8))),
            ("context_length is 4096, config.json says 300", "sliding_window is 8, config.json says None"),
        ),
    ],
    ids=["gate-up", "permutation", "eps", "theta", "needed-tensor", "optional-tensor", "context-window"],
)
def test_a_mistake_in_the_network_is_caught(
    sabotage: Callable[[Patch], None], named: tuple[str, ...], folder: Folder, tmp_path: Path, monkeypatch: Patch
) -> None:
    source = folder()
    sabotage(monkeypatch)
    refused(source, tmp_path / "out", *named)


def test_swapped_experts_are_caught(folder: Folder, tmp_path: Path, monkeypatch: Patch) -> None:
    source = folder(family="mixtral", moe={"num_experts": 4, "top_k": 2})
    honest = gguf.read_stored

    def backwards(stored: gguf.GgufTensor, *given: Any) -> torch.Tensor:
        sources = stored.sources[::-1] if "up_exps" in stored.name else stored.sources
        return honest(replace(stored, sources=sources), *given)

    monkeypatch.setattr(gguf, "read_stored", backwards)
    refused(source, tmp_path / "out", "blk.0.ffn_up_exps.weight does not hold", "experts.0", "logits")


def test_small_mistakes_before_quantising_are_caught(folder: Folder, tmp_path: Path, monkeypatch: Patch) -> None:
    """Too small for the distribution of a quantised file to tell."""
    source = folder()
    spoil("output_norm.weight", lambda weight: weight * 1.01)(monkeypatch)
    spoil("blk.1.ffn_up.weight", a_percent_of_a_row)(monkeypatch)
    spoil("token_embd.weight", a_percent_of_a_row)(monkeypatch)
    named = ("before quantising: values", "3 differ", "output_norm.weight does not hold", "token_embd.weight does not")
    refused(source, tmp_path / "out", *named, "blk.1.ffn_up.weight does not", kinds=("q8_0",))


@pytest.mark.parametrize(
    ("scaling", "sabotage", "named"),
    [
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 75},
            with_key(lambda writer: writer.add_rope_scaling_yarn_beta_slow(1.2)),
            "yarn_beta_slow",
        ),
        (
            {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
            lambda patch: patch.setattr(gguf, "_rope_factors", lambda model: torch.full((16,), 1.01)),
            "rope_freqs.weight does not stretch",
        ),
    ],
    ids=["yarn", "llama3"],
)
def test_a_mistake_in_rotary_scaling_is_caught(
    scaling: dict[str, Any],
    sabotage: Callable[[Patch], None],
    named: str,
    folder: Folder,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    source = folder(rope={"theta": 5e4, "scaling": scaling})
    sabotage(monkeypatch)
    refused(source, tmp_path / "out", named)


def with_vocabulary(patch: Patch, change: Callable[[GgufVocabulary], GgufVocabulary]) -> None:
    patch.setattr(gguf_export, "read_vocabulary", lambda folder: change(read_vocabulary(folder)))


def spoil_a_piece(vocabulary: GgufVocabulary) -> GgufVocabulary:
    tokens = list(vocabulary.tokens)
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    return replace(vocabulary, tokens=tuple(tokens))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: replace(v, pre="default"), ("ids of text", "llama.cpp [")),
        (lambda v: replace(v, template=v.template.replace("assistant", "bot")), ("chat template", "bot")),
        (lambda v: replace(v, template=None), ("chat template",)),
        (spoil_a_piece, ("spelling of every id", "2 differ")),
        (lambda v: replace(v, kinds=tuple(1 for _ in v.kinds)), ("special tokens",)),
        (lambda v: replace(v, stops=(*v.stops, 300)), ("end of an answer", "does not stop at")),
        (
            lambda v: replace(v, named=v.named | {"bos": 300, "pad": 300, "eot": 4}, begin=True),
            ("bos_token_id is 300, transformers says 1", "padding_token_id is 300", "eot_token_id is 4", "by default"),
        ),
        (
            lambda v: replace(
                v, kinds=(*v.kinds[:300], 3, *v.kinds[301:]), merges=(v.merges[1], v.merges[0], *v.merges[2:])
            ),
            ("token 300", "is of kind 3, not 1", "the merges are not those"),
        ),
    ],
    ids=["pre-tokenizer", "template", "no-template", "swapped-tokens", "kinds", "stops", "named", "kind-merges"],
)
def test_a_mistake_in_the_vocabulary_is_caught(
    change: Callable[[GgufVocabulary], GgufVocabulary], named: tuple[str, ...], folder: Folder, tmp_path: Path,
    monkeypatch: Patch,
) -> None:  # fmt: skip
    source = folder()
    with_vocabulary(monkeypatch, change)
    refused(source, tmp_path / "out", *named)


@pytest.mark.parametrize(
    ("tokenizer", "one", "other", "named"),
    [("bpe", 400, 401, "not in the order of the merges"), ("unigram", 400, 500, "not in proportion")],
)
def test_swapped_scores_are_caught(
    tokenizer: str, one: int, other: int, named: str, folder: Folder, tmp_path: Path, monkeypatch: Patch
) -> None:
    source = folder(tokenizer)

    def swap(vocabulary: GgufVocabulary) -> GgufVocabulary:
        scores = list(vocabulary.scores or ())
        scores[one], scores[other] = scores[other], scores[one]
        return replace(vocabulary, scores=tuple(scores))

    with_vocabulary(monkeypatch, swap)
    refused(source, tmp_path / "out", named)


def test_a_unigram_model_as_greedy_sentencepiece_is_caught(folder: Folder, tmp_path: Path, monkeypatch: Patch) -> None:
    """What exporters do to it."""
    source = folder("unigram")
    with_vocabulary(monkeypatch, lambda v: replace(v, algorithm="llama"))
    refused(source, tmp_path / "out", "ids of text")


def test_a_template_that_writes_nothing_is_refused(folder: Folder, tmp_path: Path) -> None:
    refused(folder(template="{{ raise_exception('no talking') }}"), tmp_path / "out", "the chat template", "no talking")
    shutil.rmtree(tmp_path / "hf")
    refused(folder(template="{% for %}"), tmp_path / "out", "the chat template")


def test_the_folder_must_be_whole(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    (shard,) = [path for path in source.glob("*.safetensors") if "model.norm.weight" in load_file(path)]
    tensors = load_file(shard)
    del tensors["model.norm.weight"]
    save_file(tensors, shard, metadata={"format": "pt"})
    refused(source, tmp_path / "out", "model.norm.weight is not in model-")
    index = source / "model.safetensors.index.json"  # the same without a trace
    content = json.loads(index.read_text(encoding="utf-8"))
    del content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content), encoding="utf-8")
    refused(source, tmp_path / "out", "1 missing: model.norm.weight")


def test_weights_of_another_model_in_a_stale_folder_are_caught(folder: Folder, tmp_path: Path) -> None:
    folder(num_layers=2).rename(tmp_path / "other")
    source = folder()
    for path in source.glob("model*"):
        path.unlink()
    for path in (tmp_path / "other").glob("model*"):
        shutil.copyfile(path, source / path.name)
    refused(source, tmp_path / "out", "missing: model.layers.2.")


def test_weights_that_were_exchanged_are_caught(folder: Folder, tmp_path: Path) -> None:
    """Shapes fit, the lineage does not."""
    source = folder()
    lineage.write(source, {"made_by": "convert hf-export", "weights": lineage.hash_of_folder(source)})
    path = next(source.glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    refused(source, tmp_path / "out", "the folder is stale", "convert hf-export")


def test_files_of_another_model_are_left_alone(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    first = export_gguf(source, tmp_path / "out", ["f32"])
    again = export_gguf(source, tmp_path / "out", ["f32"])
    assert again.proof.already and again.files == first.files
    (tmp_path / "out/Modelfile").unlink()
    refused(source, tmp_path / "out", "without its Modelfile")
    shutil.rmtree(source)
    refused(folder(num_layers=2), tmp_path / "out", "of other weights")


def test_an_output_that_exists_is_left_alone(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").write_text("of another model")
    refused(folder(), tmp_path / "out", "the output exists")
    assert (tmp_path / "out/kept").read_text() == "of another model"


def test_a_quantised_file_of_broken_weights_is_caught(folder: Folder, tmp_path: Path, monkeypatch: Patch) -> None:
    """Its numbers cannot be compared one by one, its distribution can."""
    source = folder(hidden_size=256, ffn_hidden_size=256)
    forget_the_permutation(monkeypatch)
    refused(source, tmp_path / "out", "q4_k_m", "KL divergence", "top token", kinds=("q4_k_m",))


def test_infinite_weights_are_refused(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    path = next(path for path in source.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(path))
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][3, 3] = 1e5
    save_file(tensors, path, metadata={"format": "pt"})
    refused(source, tmp_path / "out", "model.embed_tokens.weight", "f16", kinds=("f16",))


def test_two_templates_are_refused(folder: Folder, tmp_path: Path) -> None:
    source = folder()
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages }}"}))
    refused(source, tmp_path / "out", "more than one chat template")
