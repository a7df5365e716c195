"""Chat templates: spelt as transformers spells them, answers found with and without marks."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from transformers import AutoTokenizer

from megatron_ko.data.tokenizer.chat_check import check_template
from megatron_ko.data.tokenizer.chat_template import (
    ChatTemplate,
    NotPrefixError,
    TemplateError,
    load_template,
    preset_source,
    set_template,
)
from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.errors import TokenizerError

CHAT = [
    {"role": "system", "content": "짧게 답한다."},
    {"role": "user", "content": "안녕?"},
    {"role": "assistant", "content": "네, 안녕하세요."},
    {"role": "user", "content": "수도는?"},
    {"role": "assistant", "content": "\n서울입니다."},
]
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helper<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADER = "{{ '<|im_start|>assistant\n' }}"
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(params=["unigram", "bpe", "byte-bpe"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> Tokenizer:
    copytree(tokenizer_folder(request.param), tmp_path / "tok")
    return load_tokenizer(tmp_path / "tok")


@pytest.mark.parametrize("source", ["chatml", "keural", "qwen3", SMOLLM2, MARKED], ids=lambda text: text[:8])
def test_a_template_is_spelt_as_transformers_spells_it(source: str, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(source if "{" in source else preset_source(source), tokenizer)
    set_template(tokenizer.folder, template.source)
    oracle = AutoTokenizer.from_pretrained(tokenizer.folder)
    for chat, ask in ((CHAT, False), (CHAT[:2], True), (CHAT[1:3], False)):
        text = template.render(chat, ask=ask)
        assert text == oracle.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask)
        ids = oracle.apply_chat_template(chat, add_generation_prompt=ask, return_dict=True)["input_ids"]
        assert tokenizer.encode(text, parse_special=True) == list(ids)
    assert load_template(tokenizer).sha256 == template.sha256
    assert check_template(template, tokenizer).passed


@pytest.mark.parametrize("source", [preset_source("chatml"), SMOLLM2, MARKED])
def test_an_answer_is_what_was_said_and_the_end_of_the_turn(source: str, tokenizer: Tokenizer) -> None:
    rendered = ChatTemplate(source, tokenizer).render_answers(CHAT)
    said = [(answer.message, rendered.text[answer.start : answer.stop]) for answer in rendered.answers]
    assert said == [(2, "네, 안녕하세요.<|im_end|>"), (4, "\n서울입니다.<|im_end|>")]


def test_marks_and_rendering_twice_find_the_same_answers_as_transformers(tokenizer: Tokenizer) -> None:
    set_template(tokenizer.folder, MARKED)
    oracle = AutoTokenizer.from_pretrained(tokenizer.folder)
    found = oracle.apply_chat_template(CHAT[:3], return_dict=True, return_assistant_tokens_mask=True)
    answer = ChatTemplate(MARKED, tokenizer).render_answers(CHAT[:3])
    text = answer.text[answer.answers[0].start : answer.answers[0].stop]
    trained = [i for i, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
    assert trained == tokenizer.encode(text, parse_special=True)


def test_a_template_that_spells_earlier_thoughts_otherwise_says_so(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(preset_source("qwen3"), tokenizer)
    thoughtful = [{**message, "reasoning_content": "음."} for message in CHAT]
    with pytest.raises(NotPrefixError):
        template.render_answers(thoughtful)
    last = template.render_answers(thoughtful, only=[4])
    assert last.text[last.answers[0].start :].startswith("<think>\n음.\n</think>\n\n")
    assert not check_template(template, tokenizer).keeps_earlier_turns


def test_what_cannot_be_trained_on_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="no special token ends an answer"):
        ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}", tokenizer)
    with pytest.raises(TokenizerError, match="cannot be rendered"):
        ChatTemplate("{{ messages | nonsense }}", tokenizer)
    strict = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + preset_source("keural")
    with pytest.raises(TemplateError, match="no system"):
        ChatTemplate(strict, tokenizer).render(CHAT)
    report = check_template(ChatTemplate(preset_source("frankenstallm"), tokenizer), tokenizer)
    assert not report.passed and "tokens" in next(check.example for check in report.checks if not check.ok)
    with pytest.raises(TokenizerError, match="no chat template"):
        load_template(tokenizer)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (SMOLLM2.partition("{% if add_generation_prompt")[0], "nothing asks for an answer"),
(MARKED.replace(HEADER + "{% generation %}", "{% generation %}" + HEADER), "is part of the prompt"),
    ],
    ids=["never asks", "marks the header"],
)  # fmt: skip
def test_a_template_that_trains_its_prompt_does_not_pass(source: str, reason: str, tokenizer: Tokenizer) -> None:
    report = check_template(ChatTemplate(source, tokenizer), tokenizer)
    assert reason in next(check.example for check in report.checks if not check.ok)


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"])
def test_a_template_that_breaks_is_refused(source: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="cannot be rendered"):
        ChatTemplate(source, tokenizer)


def test_a_template_in_the_configuration_moves_into_the_one_file(tokenizer: Tokenizer) -> None:
    config = tokenizer.folder / "tokenizer_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("{", '{"chat_template": "old", ', 1), encoding="utf-8")
    set_template(tokenizer.folder, SMOLLM2)
    assert "chat_template" not in config.read_text(encoding="utf-8")
    assert (tokenizer.folder / "chat_template.jinja").read_text(encoding="utf-8") == SMOLLM2
