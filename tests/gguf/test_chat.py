"""A model that was taught a few answers: llama.cpp gives them through the file's own chat template, and stops."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from gguf_tests import Folder, gate, train
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from megatron_ko.artifacts import lineage
from megatron_ko.cli.main import app
from megatron_ko.convert.gguf.export import GgufExport, export_gguf
from megatron_ko.convert.gguf.llama_cpp import LlamaModel
from megatron_ko.convert.gguf.ollama import check_modelfile_text, quoted
from megatron_ko.convert.gguf.ollama_chats import FORMATS, Chat, ollama_template
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
    assert train(network, [{**batch, "labels": labels}] * 80, path) < 0.1


def taught(source: Path, output: Path) -> GgufExport:
    """The folder with the files."""
    generation = (source / "generation_config.json").read_text()
    teach(source)
    (source / "generation_config.json").write_text(generation)
    return export_gguf(source, output, ["f32", "q8_0"])


def answers(path: Path, question: str) -> dict[str, Any]:
    """What llama.cpp says through the template in the file."""
    import llama_cpp

    chat = llama_cpp.Llama(str(path), n_ctx=256, verbose=False)
    done: Any = chat.create_chat_completion([{"role": "user", "content": question}], temperature=0, max_tokens=100)
    return {"text": done["choices"][0]["message"]["content"], "why": done["choices"][0]["finish_reason"]}


def test_answers_come_through_the_template_and_stop(folder: Folder, tmp_path: Path) -> None:
    exported = taught(folder(num_layers=2, init_std=0.02), tmp_path / "out")
    assert gate(exported, "end of an answer").found == "stops at <|im_end|>, </s>"
    for kind in ("f32", "q8_0"):
        for question, answer in TAUGHT.items():
            assert answers(tmp_path / f"out/out-{kind}.gguf", question) == {"text": answer, "why": "stop"}
    with LlamaModel(tmp_path / "out/out-f32.gguf", context=256) as model:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        tokens = model.generate(model.tokenise(prompt, parse_special=True), limit=100)
    assert tokens[-1] == CHAT_END and len(tokens) < 100
    check_modelfile(tmp_path / "out/Modelfile")


def test_a_template_that_ollama_cannot_say(folder: Folder, tmp_path: Path) -> None:
    """No Modelfile, and every gate: it is in the file, and ends its answers with a token that nothing else names."""
    template = (
        "{% for m in messages %}{{ '[[' + m.role|upper + ']]\n' + m.content|trim + '<pad>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[[ASSISTANT]]\n' }}{% endif %}"
    )
    source = folder(num_layers=2, init_std=0.02, template=template)
    (source / "generation_config.json").write_text('{"eos_token_id": 2}')
    exported = taught(source, tmp_path / "out")
    assert gate(exported, "end of an answer").found == "stops at <pad>, </s>"
    (note,) = exported.ollama.notes
    assert not exported.ollama.modelfile and "'[[USER]]" in note
    assert not (tmp_path / "out/Modelfile").exists()
    assert lineage.read(tmp_path / "out")["ollama"] == asdict(exported.ollama)  # type: ignore[index]
    for question, answer in TAUGHT.items():
        assert answers(tmp_path / "out/out-q8_0.gguf", question) == {"text": answer, "why": "stop"}
    done = CliRunner().invoke(app, ["convert", "gguf", str(source), str(tmp_path / "out"), "--types", "f32,q8_0"])
    assert "nothing to do" in done.stdout and "no Modelfile for Ollama" in done.stdout and note in done.stdout


def check_modelfile(path: Path) -> None:
    """The same chat and every stop."""
    text = path.read_text(encoding="utf-8")
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert template == ollama_template(Chat(FORMATS[0]))
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
        check_modelfile_text(stop, "a stop")
        assert unquoted(quoted(stop)) == stop
    for lost in ("zero\u200bwidth", "ideographic\u3000space", 'three """ marks', "\ufeff"):
        with pytest.raises(ConvertError, match="cannot hold a stop"):
            check_modelfile_text(lost, "a stop")
