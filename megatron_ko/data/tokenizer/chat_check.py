"""Whether a chat template can be trained on: what it writes, what transformers makes of it, and what is an answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ko.data.tokenizer.chat_template import (
    ASSISTANT,
    ChatTemplate,
    Message,
    NotPrefixError,
    TemplateError,
    preset_source,
    presets,
)
from megatron_ko.data.tokenizer.check import MARKER, CheckResult, result_of
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.errors import TokenizerError
from megatron_ko.storage.open_json import JsonObject

_WEATHER: JsonObject = {
    "type": "function",
    "function": {
        "name": "날씨",
        "description": "도시의 날씨를 알려 준다.",
        "parameters": {"type": "object", "properties": {"도시": {"type": "string"}}, "required": ["도시"]},
    },
}
_ONE: list[Message] = [
    {"role": "user", "content": "한국의 수도는 어디인가요?"},
    {"role": ASSISTANT, "content": "서울입니다."},
]
_SEVERAL: list[Message] = [
    *_ONE,
    {"role": "user", "content": "인구는\n얼마나 되나요?"},
    {"role": ASSISTANT, "content": "약 930만 명입니다.\n\n- 2024년 기준"},
]
_SYSTEM: list[Message] = [{"role": "system", "content": "짧게 답한다."}, *_SEVERAL]
_EMPTY: list[Message] = [{"role": "user", "content": ""}, {"role": ASSISTANT, "content": "무엇을 도와드릴까요?"}]
_THOUGHTS: list[Message] = [
    {**message, "reasoning_content": "생각해 보자."} if message["role"] == ASSISTANT else message
    for message in _SEVERAL
]
_CALL: list[Message] = [
    {"role": "user", "content": "부산 날씨는?"},
    {
        "role": ASSISTANT,
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "날씨", "arguments": {"도시": "부산"}}}],
    },
    {"role": "tool", "content": '{"기온": 21}'},
    {"role": ASSISTANT, "content": "21도입니다."},
]


@dataclass(frozen=True)
class _Probe:
    """A conversation that templates are tried on; one that a template need not know may be refused by it."""

    messages: list[Message]
    tools: tuple[JsonObject, ...] = ()
    optional: bool = False


_PROBES = {
    "one turn": _Probe(_ONE),
    "several turns": _Probe(_SEVERAL),
    "system": _Probe(_SYSTEM, optional=True),
    "empty question": _Probe(_EMPTY),
    "thoughts": _Probe(_THOUGHTS),
    "tools": _Probe(_CALL, (_WEATHER,), optional=True),
}


@dataclass(frozen=True)
class TemplateReport:
    """What a template does.

    Attributes:
        sha256: of it.
        end, end_id: the token that ends an answer.
        marks_answers: whether it says itself what an answer is.
        keeps_earlier_turns: whether earlier turns are spelt alike however a conversation goes on.
        refuses: conversations that it need not know, such as those with tools, and does not.
        checks: what was tried, and the first failure of each.
        example: a conversation as it is spelt.
        passed: whether it can be trained on.
    """

    sha256: str
    end: str
    end_id: int
    marks_answers: bool
    keeps_earlier_turns: bool
    refuses: tuple[str, ...]
    checks: tuple[CheckResult, ...]
    example: str
    passed: bool


def find_source(name: str) -> str:
    """A template by the name of a preset, or of a file.

    Raises:
        TokenizerError: it is neither.
    """
    if name in presets():
        return preset_source(name)
    if not Path(name).is_file():
        raise TokenizerError(
            f"no chat template {name!r}", expected=f"{', '.join(presets())}, or a file", remedy="check --set"
        )
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is no template", got=str(error), expected="a Jinja template in UTF-8") from None


def check_template(template: ChatTemplate, tokenizer: Tokenizer) -> TemplateReport:
    """Try a template on conversations with and without a system text, tools, thoughts, and empty turns."""
    known, refused = {}, []
    failures = []
    for name, probe in _PROBES.items():
        try:
            known[name] = template.render(probe.messages, probe.tools)
        except TemplateError as error:
            refused.append(name)
            failures += [] if probe.optional else [f"{name}: {error}"]
    checks = (
        result_of("conversations can be spelt", len(_PROBES), failures),
        _markers(known.values(), template, tokenizer),
        _transformers(known, template, tokenizer),
        _answers(known, template, tokenizer),
    )
    return TemplateReport(
        sha256=template.sha256,
        end=template.end,
        end_id=template.end_id,
        marks_answers=template.marks_answers,
        keeps_earlier_turns=_keeps_earlier_turns(known, template),
        refuses=tuple(refused),
        checks=checks,
        example=known.get("system", known.get("several turns", "")),
        passed=all(check.ok for check in checks),
    )


def _markers(texts: Any, template: ChatTemplate, tokenizer: Tokenizer) -> CheckResult:
    written = {marker for text in texts for marker in MARKER.findall(text)} | {template.end}
    failures = []
    for marker in sorted(written):
        ids = tokenizer.encode(marker, parse_special=True)
        if len(ids) != 1 or marker not in tokenizer.added_tokens:
            failures.append(f"{marker!r} is {len(ids)} tokens")
    return result_of("every marker is a single id", len(written), failures)


def _transformers(known: dict[str, str], template: ChatTemplate, tokenizer: Tokenizer) -> CheckResult:
    name = "transformers spells and encodes alike"
    try:
        from transformers import AutoTokenizer

        oracle = AutoTokenizer.from_pretrained(str(tokenizer.folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever stops transformers from loading it stops its users too
        return result_of(name, 1, [f"not run: {type(error).__name__}: {error}"[:300]])
    failures = []
    for probe, text in known.items():
        conversation: Any = _PROBES[probe].messages
        tools = list(_PROBES[probe].tools) or None
        given: JsonObject = {"tools": tools, "chat_template": template.source}
        theirs = oracle.apply_chat_template(conversation, tokenize=False, **given)
        encoded: Any = oracle.apply_chat_template(conversation, tokenize=True, return_dict=True, **given)
        if theirs != text:
            failures.append(f"{probe}: {theirs!r} there, {text!r} here")
        elif list(encoded["input_ids"]) != tokenizer.encode(text, parse_special=True):
            failures.append(f"{probe}: other ids")
    return result_of(name, len(known), failures)


def _answers(known: dict[str, str], template: ChatTemplate, tokenizer: Tokenizer) -> CheckResult:
    """Whether each answer is found, holds what was said, and ends with the end of the turn."""
    failures, tried = [], 0
    for name in known:
        for messages in _ends(_PROBES[name].messages):
            tried += 1
            try:
                rendered = template.render_answers(messages, _PROBES[name].tools, only=[len(messages) - 1])
            except TemplateError as error:
                failures += [] if _PROBES[name].optional else [f"{name}: {error}"]
                continue
            (answer,) = rendered.answers
            asked = template.render(messages[:-1], _PROBES[name].tools, ask=True)
            if asked == template.render(messages[:-1], _PROBES[name].tools):
                failures.append(f"{name}: nothing asks for an answer (add_generation_prompt)")
                continue
            if rendered.text.startswith(asked) and answer.start < len(asked):
                failures.append(f"{name}: {asked[answer.start :]!r} is trained, although it is part of the prompt")
                continue
            said = rendered.text[answer.start : answer.stop]
            if str(messages[-1]["content"]).strip() not in said or not said.endswith(template.end):
                failures.append(f"{name}: {said!r}")
    return result_of("an answer is what was said and its end", tried, failures)


def _ends(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation up to each of its answers."""
    for number, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            yield messages[: number + 1]


def _keeps_earlier_turns(known: dict[str, str], template: ChatTemplate) -> bool:
    for name in known:
        try:
            template.render_answers(_PROBES[name].messages, _PROBES[name].tools)
        except NotPrefixError:
            return False
        except TemplateError:  # ``_answers`` tells it
            continue
    return True
