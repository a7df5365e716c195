"""Which format a chat template writes, found by rendering it; Ollama's template of a format writes the same."""

import re
from typing import Any

import jinja2
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_ko.convert.gguf.ollama_chats import FORMATS, PROBES, Chat, format_chat, ollama_template, recognise

ASK = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    + ASK + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
DEFAULT = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n너는 {{ 도우미 }}야.<|im_end|>\n' }}{% endif %}"
LLAMA3 = (
    "{% for m in messages %}{{ bos_token if loop.first }}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content TRIM }}<|eot_id|>{% endfor %}"
    + ASK + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)  # fmt: skip
FOLDED = (
    "{{ bos_token }}{% set start = 1 if messages[0].role == 'system' else 0 %}{% for m in messages[start:] %}"
    "{% if m.role == 'user' %}{{ ' [INST] ' + (messages[0].content + '\n\n' if loop.first and start else '')"
    " + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + eos_token }}{% endfor %}"
)
ZEPHYR = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}" + ASK + "<|assistant|>\n{% endif %}"  # fmt: skip  # noqa: E501
EXAONE = (
    "{% if messages[0].role != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}{% for m in messages %}"
    "[|{{ m.role }}|]{{ m.content + ('\n' if m.role == 'user' else '[|endofturn|]\n') }}{% endfor %}"
    + ASK + "[|assistant|]{% endif %}"
)  # fmt: skip
SOLAR = (
    "{% for m in messages %}### {{ m.role|capitalize }}:\n{{ m.content }}{{ '\n\n' }}{% endfor %}"
    + ASK + "{{ '### Assistant:\n' }}{% endif %}"
)  # fmt: skip


def oracle(template: str, **special: str) -> Any:
    words = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<s>": 1, "</s>": 2}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **{"bos_token": "<s>", "eos_token": "</s>", **special})
    tokenizer.chat_template = template
    return tokenizer


def known(template: str, begins: bool = False, **special: str) -> Chat:
    found = recognise(oracle(template, **special), begins)
    assert isinstance(found, Chat), found
    return found


@pytest.mark.parametrize(
    ("template", "name", "begin", "default", "noted"),
    [
        (CHATML, "ChatML", "", None, []),
        (DEFAULT + CHATML, "ChatML", "", "너는 {{ 도우미 }}야.", []),
        (LLAMA3.replace("TRIM", ""), "Llama 3", "<s>", None, []),
        (LLAMA3.replace("TRIM", "| trim"), "Llama 3", "<s>", None, ["strips messages of system, user, assistant"]),
        (FOLDED, "Mistral, a space before a question", "<s>", None, []),
        (ALTERNATING, "Mistral", "<s>", None, ["refuses system messages"]),
        (ZEPHYR, "Zephyr", "", None, []),
        (EXAONE, "EXAONE", "", "", []),
        (SOLAR, "SOLAR", "", None, []),
    ],
    ids=["chatml", "default", "llama3", "llama3-trim", "mistral", "mistral-plain", "zephyr", "exaone", "solar"],
)
def test_a_format_is_found_by_what_is_written(
    template: str, name: str, begin: str, default: str | None, noted: list[str]
) -> None:
    chat = known(template)
    assert (chat.format.name, chat.begin, chat.default) == (name, begin, default)
    assert len(chat.notes) == len(noted) and all(one in note for one, note in zip(noted, chat.notes, strict=True))
    tokenizer = oracle(template)
    messages = PROBES["several turns"]
    assert format_chat(chat, messages) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_the_begin_token_is_written_once() -> None:
    """llama.cpp puts it before every prompt of some models."""
    assert known(LLAMA3.replace("TRIM", ""), begins=True).begin == ""
    assert [note for note in known(CHATML, begins=True).notes if "no begin token" in note]
    assert known(CHATML, bos_token="<|im_start|>").begin == ""  # as in SmolLM2, whose tokenizer puts none before a text


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (CHATML.replace("m.content +", "m.content.split('</think>')[-1] +"), "ChatML in all but thoughts in an answer"),
        (CHATML.replace("m.content +", "m.content.lstrip() +"), "ChatML in all but spaces around a message"),
        (DEFAULT.replace("너는", "' + strftime_now('%Y-%m-%d') + '") + CHATML, "ChatML in all but the date"),
        (CHATML.replace("assistant\n", "assistant\n<think>\n"), "no known format: '<|im_start|>user"),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] ", "no known format: '[user]"),
        ("{{ raise_exception('never') }}", "no known format: None"),
    ],
    ids=["thoughts", "half-stripped", "date", "other-answer", "unknown", "refuses"],
)
def test_a_template_that_does_more_is_not_claimed(template: str, named: str) -> None:
    found = recognise(oracle(template), begins=False)
    assert isinstance(found, str) and named in found


# Ollama's actions, as they stand in these templates, in Jinja's words.
ACTIONS = {
    r"\{\{ range \$i, \$_ := \.Messages \}\}": "{% for m in messages %}",
    r"\{\{ \$joined := (\w+) \}\}": r"{% set ns = namespace(joined=\1) %}",
    r"\{\{ \$joined = (\w+) \}\}": r"{% set ns.joined = \1 %}",
    r"\{\{ if not \$joined \}\}": "{% if not ns.joined %}",
    r'\{\{ if and \(eq \$i 0\) \(ne \.Role "system"\) \}\}': "{% if loop.first and m.role != 'system' %}",
    r'\{\{ if eq \.Role ("\w+") \}\}': r"{% if m.role == \1 %}",
    r'\{\{ else if eq \.Role ("\w+") \}\}': r"{% elif m.role == \1 %}",
    r"\{\{ else \}\}": "{% else %}",
    r"\{\{ \.Role \}\}": "{{ m.role }}",
    r"\{\{ \.Content \}\}": "{{ m.content }}",
}


def rendered_as_go(template: str, messages: Any) -> str:
    for action, words in ACTIONS.items():
        template = re.sub(action, words, template)
    ends = ["{% endfor %}"]  # of what is open
    parts = re.split(r"(\{% (?:if|for) |\{\{ end \}\})", template)
    for index, part in enumerate(parts):
        if part == "{% if ":
            ends.append("{% endif %}")
        elif part == "{{ end }}":
            parts[index] = ends.pop()
    environment = jinja2.Environment(keep_trailing_newline=True)
    return environment.from_string("".join(parts)).render(messages=messages)


@pytest.mark.parametrize("default", [None, "기본 {{ x }} {"])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_ollamas_template_writes_what_its_twin_writes(form: Any, default: str | None) -> None:
    """The same texts were compared with Go's own text/template."""
    chat = Chat(form, begin="<s>", default=default)
    for messages in PROBES.values():
        assert rendered_as_go(ollama_template(chat), messages) == format_chat(chat, messages)
