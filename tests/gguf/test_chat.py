"""A model that was taught a few answers: llama.cpp gives them through the file's own chat template, and stops."""

import re
from pathlib import Path

import pytest
from gguf_tests import Folder, gate, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_ko.convert.gguf_export import export_gguf
from megatron_ko.convert.llama_cpp import LlamaModel
from megatron_ko.convert.ollama import CHATML, chatml, check_sayable, quoted
from megatron_ko.errors import ConvertError

TAUGHT = {
    "수도가 어디예요?": "서울입니다.",
    "오늘 날씨는?": "맑고 바람이 붑니다.\n우산은 필요 없어요.",
    "2 + 3은?": "5",
}
CHAT_END = 5


def teach(path: Path) -> None:
    """A few seconds of training on the answers and on the token that ends them."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForCausalLM.from_pretrained(path).train()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for question, answer in TAUGHT.items()
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert train(network, [{**batch, "labels": labels}] * 80, path) < 0.05


@pytest.fixture
def taught(folder: Folder, tmp_path: Path) -> Path:
    """The folder with the files."""
    source = folder(num_layers=2, init_std=0.02)
    generation = (source / "generation_config.json").read_text()
    teach(source)
    (source / "generation_config.json").write_text(generation)
    exported = export_gguf(source, tmp_path / "out", ["f32", "q8_0"])
    assert gate(exported, "end of an answer").found == "stops at <|im_end|>, </s>"
    return tmp_path / "out"


def test_answers_come_through_the_template_and_stop(taught: Path) -> None:
    import llama_cpp

    for kind in ("f32", "q8_0"):
        chat = llama_cpp.Llama(str(taught / f"out-{kind}.gguf"), n_ctx=256, verbose=False)
        for question, answer in TAUGHT.items():
            messages = [{"role": "user", "content": question}]
            done = chat.create_chat_completion(messages, temperature=0, max_tokens=100)  # type: ignore[arg-type]
            assert done["choices"][0]["message"]["content"] == answer  # type: ignore[index]
            assert done["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]
    with LlamaModel(taught / "out-f32.gguf", context=256) as model:
        tokens = model.generate(model.tokenise(chatml(messages), parse_special=True), limit=100)
    assert tokens[-1] == CHAT_END and len(tokens) < 100


def go_template(template: str, messages: list[dict[str, str]]) -> str:
    """Ollama's rendering of the little of Go's templates that is used: range over messages, fields, trimmed space."""
    before, inside, after = re.split(r"\{\{-? range \.Messages \}\}|\{\{ end \}\}", template)
    turns = [inside.replace("{{ .Role }}", one["role"]).replace("{{ .Content }}", one["content"]) for one in messages]
    return before + "".join(turns) + after


def test_the_modelfile_writes_the_same_chat_and_every_stop(taught: Path) -> None:
    text = (taught / "Modelfile").read_text(encoding="utf-8")
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert template == CHATML
    messages = [
        {"role": "system", "content": "짧게."},
        {"role": "user", "content": "안녕?\n그래"},
        {"role": "assistant", "content": "네."},
        {"role": "user", "content": "잘 가"},
    ]
    assert go_template(template, messages) == chatml(messages)
    assert text.startswith("FROM ./out-q8_0.gguf\n")
    stops = re.findall(r'PARAMETER stop "(.*)"', text)
    assert stops == ["<|im_end|>", "</s>", "<|im_start|>"]
    sampling = dict(re.findall(r"PARAMETER (\w+) ([\d.]+)", text))
    assert sampling == {
        "temperature": "0.7", "repeat_penalty": "1.2", "top_p": "0.9", "top_k": "50", "num_predict": "512",
        "num_ctx": "300",
    }  # fmt: skip


def unquoted(value: str) -> str:
    """Ollama's reading of a value: three quotation marks or one at either end are taken off, nothing is unescaped."""
    marks = 3 if value.startswith('"""') else 1
    return value[marks:-marks]


def test_stops_are_quoted_as_ollama_reads_them() -> None:
    """Compared once with Ollama's own parser, compiled from its source."""
    for stop in ("<|im_end|>", "a b ", 'say "no"', '"', "back\\slash", "{{ .Prompt }}", "two\nlines", "tab\t", "끝"):
        check_sayable(stop, "a stop")
        assert unquoted(quoted(stop)) == stop
    for lost in ("zero\u200bwidth", "ideographic\u3000space", 'three """ marks', "\ufeff"):
        with pytest.raises(ConvertError, match="cannot hold a stop"):
            check_sayable(lost, "a stop")
