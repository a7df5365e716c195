"""The README.md of an exported folder: from its lineage and the metrics of its run, and from nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_ko.artifacts.lineage import Record, draw
from megatron_ko.artifacts.native import Pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert.families import family_of
from megatron_ko.convert.gates import Gate, gate_table


def model_card(name: str, source: Pretrained, record: Record) -> str:
    """Text of the card.

    Args:
        name: of the folder.
        source: the native model.
        record: lineage of the folder.
    """
    return "\n".join([*_header(source), f"# {name}", "", *_english(name, source, record), *_korean(source, record)])


def _header(source: Pretrained) -> list[str]:
    tags = ["megatron_ko", *(["custom_code"] if family_of(source.model).code else [])]
    return [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [{', '.join(tags)}]",
        "---",
        "",
    ]


def _english(name: str, source: Pretrained, record: Record) -> Iterator[str]:
    model, family = source.model, family_of(source.model)
    code = ", trust_remote_code=True" if family.code else ""
    size = f"{record['parameters']:,} parameters"
    yield f"{size}, `{family.architecture}`, {record['options']['dtype']}. {_why(model)}".rstrip()
    yield from ("", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto"{code})'
    if source.tokenizer is not None:
        yield f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    yield from ("```", "", "## Network", "", "| | |", "|---|---|")
    yield from (f"| {label} | {value} |" for label, value in _network(model))
    yield from ("", "## Training", "")
    yield from _training(source, record)
    yield from ("", "## Proof", "", "Compared with the native model when this folder was written:", "", "```")
    yield gate_table(Gate(**gate) for gate in record["gates"])
    yield from ("```", "", "## Ancestry", "", "```")
    yield from draw({"path": name, "weights": record["weights"], "record": record}, whole_paths=False)
    yield from ("```", "")


def _korean(source: Pretrained, record: Record) -> Iterator[str]:
    model = source.model
    yield from ("## 요약", "")
    yield f"- 매개변수 {record['parameters']:,}개, 층 {model.num_layers}개, 문맥 {model.max_position_embeddings:,} 토큰"
    if source.step:
        yield f"- {source.step:,} 스텝, {source.tokens:,} 토큰으로 학습"
    passed = sum(gate["ok"] for gate in record["gates"])
    yield f"- 원본 모델과 비교한 검사 {len(record['gates'])}개 중 {passed}개 통과"
    yield f"- 로짓 차이 최대 {record['logits']['max_difference']:.1e}"
    yield f"- 가중치 해시 `{record['weights']}`"
    yield ""


def _why(model: ModelConfig) -> str:
    if model.family != "keural":
        return ""
    if family_of(model).code:
        return "Its layers have different windows, so the folder brings its own modelling file."
    return "Written as plain Mixtral, because all its layers see the same tokens."


def _network(model: ModelConfig) -> Iterator[tuple[str, str]]:
    yield "layers", f"{model.num_layers}"
    yield "width", f"{model.hidden_size:,}; feed-forward {model.ffn_hidden_size:,}"
    groups = f"{model.query_groups} of keys and values"
    yield "heads", f"{model.num_attention_heads} of queries, {groups}, {model.kv_channels} wide"
    if model.moe is not None:
        yield "experts", f"{model.moe.num_experts}, of which a token sees {model.moe.top_k}"
    if model.windows is not None:
        widths = sorted({window for window in model.windows if window is not None})
        cut = sum(window is not None for window in model.windows)
        yield "windows", f"{cut} of {model.num_layers} layers see {', '.join(map(str, widths))} earlier tokens"
    yield "vocabulary", f"{model.vocab_size:,}"
    yield "context", f"{model.max_position_embeddings:,} tokens"


def _training(source: Pretrained, record: Record) -> Iterator[str]:
    """What the lineage and the metric store of the run say; nothing where they say nothing."""
    corpus = [part for parent in record["parents"] for part in (parent["record"] or {}).get("corpus", [])]
    if not source.step:
        yield "This folder was made of weights whose training is not recorded in their lineage."
        return
    yield f"Step {source.step:,}, {source.tokens:,} tokens."
    losses = {"training": ("train", "loss"), "validation": ("valid", "valid_loss")}
    for label, (file, column) in losses.items():
        if (found := _metric(source.origin / "metrics" / f"{file}.jsonl", source.step, column)) is not None:
            at, value = found
            yield f"Loss of {label}: {value:.4f} at step {at:,}."
    if corpus:
        yield from ("", "| corpus | tokens | sha256 |", "|---|---|---|")
        yield from (
            f"| {Path(part['prefix']).name} | {part['tokens']:,} | `{part['sha256'][:16]}` |" for part in corpus
        )


def _metric(path: Path, step: int, column: str) -> tuple[int, float] | None:
    """Step and value of the newest number of a column up to a step."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = text.rpartition("\n")[0].splitlines()  # the last line may be half written
    found = [row for row in map(json.loads, whole) if row["step"] <= step and row.get(column) is not None]
    return (found[-1]["step"], found[-1][column]) if found else None
