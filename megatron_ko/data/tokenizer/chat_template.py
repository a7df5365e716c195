"""The chat template of a tokenizer: how a conversation is spelt, and which part of that is the model's own answer.

One file, ``chat_template.jinja`` in the tokenizer's folder, serves training, generation and every export. Templates
rarely mark what is an answer (``{% generation %}``). Without the marks answers are found by rendering twice: what is
behind the prompt that a model would be given, up to and with the token that ends its turn.
"""

import hashlib
import json
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from megatron_ko.data.tokenizer.tokenizer import TRANSFORMERS_CONFIG, Tokenizer
from megatron_ko.errors import TokenizerError
from megatron_ko.storage.files import write_atomic
from megatron_ko.storage.open_json import JsonObject

CHAT_TEMPLATE = "chat_template.jinja"
ASSISTANT = "assistant"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER = "질문입니다", "대답입니다"

# A message as templates see it: "role", "content", and whatever else a template reads.
Message = JsonObject


class TemplateError(Exception):
    """A conversation that the template cannot spell, or whose answers cannot be told apart; says why."""


@dataclass(frozen=True)
class Answer:
    """Characters ``start`` up to ``stop`` of a rendered conversation, the end of the turn included.

    Attributes:
        message: number of the message that it is.
    """

    message: int
    start: int
    stop: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and its answers in order."""

    text: str
    answers: tuple[Answer, ...]


class ChatTemplate:
    """A Jinja template, rendered as transformers' ``apply_chat_template`` does.

    Args:
        source: the template.
        tokenizer: whose special tokens the template may name.

    Attributes:
        source: the template.
        sha256: of it.
        marks_answers: whether it says itself what an answer is.
        end: the special token that ends an answer.

    Raises:
        TokenizerError: the template cannot be rendered, or no special token ends an answer.
    """

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source, self._tokenizer = source, tokenizer
        self.sha256 = hashlib.sha256(source.encode("utf-8")).hexdigest()
        self.marks_answers = bool(_GENERATION.search(source))
        self._named = _named_tokens(tokenizer.folder)
        self.end = self._end_of_turn()

    @property
    def end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self._tokenizer.special_tokens[self.end]

    @cached_property
    def markers(self) -> re.Pattern[str]:
        """Finds what is never text: the special tokens, and other added tokens that the template writes."""
        names = set(self._tokenizer.special_tokens)
        names |= {token for token in self._tokenizer.added_tokens if token in self.source}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    def render(self, messages: Sequence[Message], tools: Sequence[JsonObject] | None = None, ask: bool = False) -> str:
        """The text of a conversation.

        Args:
            messages: in order.
            tools: that the model may call, as JSON schemas.
            ask: add what comes before an answer.

        Raises:
            TemplateError: the template refuses this conversation.
        """
        return self._render(messages, tools, add_generation_prompt=ask)[0]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[JsonObject] | None, **options: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        given = [dict(message) for message in messages]
        try:
            texts, marks = render(
                [given], tools=list(tools) if tools else None, chat_template=self.source, **options, **self._named
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise TemplateError(f"the template refuses it: {error or type(error).__name__}") from error
        return texts[0], marks[0] if marks else []

    def render_answers(
        self, messages: Sequence[Message], tools: Sequence[JsonObject] | None = None, only: Container[int] | None = None
    ) -> Rendered:
        """The text of a conversation and where its answers stand in it.

        Args:
            messages: in order.
            tools: that the model may call.
            only: numbers of the messages whose answers are looked for; None: all.

        Raises:
            TemplateError: the template refuses it, or an answer does not end with ``end``.
            NotPrefixError: earlier turns are spelt otherwise once the conversation goes on.
        """
        numbers = [number for number, message in enumerate(messages) if message.get("role") == ASSISTANT]
        if self.marks_answers:
            text, marks = self._render(messages, tools, return_assistant_tokens_mask=True)
            if len(marks) != len(numbers):
                raise TemplateError(f"the template marks {len(marks)} answers of {len(numbers)}")
            found = [Answer(number, *mark) for number, mark in zip(numbers, marks, strict=True)]
        else:
            text = self.render(messages, tools)
            wanted = (number for number in numbers if only is None or number in only)
            found = [self._find_answer(text, messages, tools, number) for number in wanted]
        answers = tuple(answer for answer in found if only is None or answer.message in only)
        for answer in answers:
            if not text[: answer.stop].endswith(self.end) or answer.stop - answer.start == len(self.end):
                raise TemplateError(f"no answer before {self.end!r} in message {answer.message}")
        return Rendered(text, answers)

    def _find_answer(
        self, text: str, messages: Sequence[Message], tools: Sequence[JsonObject] | None, number: int
    ) -> Answer:
        prompt = self.render(messages[:number], tools, ask=True)
        until = self.render(messages[: number + 1], tools)
        stop = until.rfind(self.end, len(prompt)) + len(self.end)
        if stop < len(self.end):
            raise TemplateError(f"nothing ends the answer in message {number}")
        if not until.startswith(prompt) or not text.startswith(until[:stop]):
            raise NotPrefixError("earlier turns are spelt otherwise once the conversation goes on")
        return Answer(number, len(prompt), stop)

    def _end_of_turn(self) -> str:
        messages = [{"role": "user", "content": _QUESTION}, {"role": ASSISTANT, "content": _ANSWER}]
        try:
            text = self.render(messages)
        except TemplateError as error:
            raise TokenizerError("the chat template cannot be rendered", got=error, remedy="repair it") from error
        _, found, after = text.rpartition(_ANSWER)
        places = {after.find(token): token for token in self._tokenizer.special_tokens if token in after}
        if not found or not places:
            raise TokenizerError(
                "no special token ends an answer in the chat template",
                got=f"{after!r} after an answer" if found else f"{text!r}, without the answer",
                expected=f"one of {', '.join(self._tokenizer.special_tokens)}",
                remedy="end the assistant's turn with a special token of the tokenizer, or add the token to it",
            )
        return places[min(places)]


class NotPrefixError(TemplateError):
    """The template spells earlier turns otherwise once the conversation goes on: each answer needs a row of its own."""


def read_template(folder: Path) -> str | None:
    """The template of a tokenizer's folder; None without one.

    Raises:
        TokenizerError: there are several.
    """
    path = folder / CHAT_TEMPLATE
    inline = _config(folder).get("chat_template")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(inline, list):
        raise TokenizerError(
            f"{folder} has several chat templates",
            got=", ".join(str(one.get("name")) for one in inline),
            remedy="choose one: megatron-ko tokenizer chat DIR --set FILE.jinja",
        )
    return inline if isinstance(inline, str) else None


def load_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        TokenizerError: it has none, or one that cannot be used.
    """
    source = read_template(tokenizer.folder)
    if source is None:
        raise TokenizerError(
            f"{tokenizer.folder} has no chat template",
            expected=CHAT_TEMPLATE,
            remedy=f"megatron-ko tokenizer chat {tokenizer.folder} --set chatml",
        )
    return ChatTemplate(source, tokenizer)


def presets() -> list[str]:
    """Names of the templates that are part of this package."""
    return sorted(Path(entry.name).stem for entry in _presets().iterdir() if entry.name.endswith(".jinja"))


def preset_source(name: str) -> str:
    """A template of this package."""
    return _presets().joinpath(f"{name}.jinja").read_text(encoding="utf-8")


def set_template(folder: Path, source: str) -> None:
    """Make ``source`` the only chat template of a tokenizer's folder."""
    write_atomic(folder / CHAT_TEMPLATE, source.encode("utf-8"))
    config = _config(folder)
    if config.pop("chat_template", None) is not None:
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        write_atomic(folder / TRANSFORMERS_CONFIG, text.encode("utf-8"))


def _presets() -> Any:
    return files("megatron_ko.data.tokenizer").joinpath("chat_presets")


def _config(folder: Path) -> JsonObject:
    content: JsonObject = json.loads((folder / TRANSFORMERS_CONFIG).read_text(encoding="utf-8"))
    return content


def _named_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and other names that transformers passes to a template."""
    named = {}
    for name, value in _config(folder).items():
        if name.endswith("_token") and name.count("_") == 1:
            spelling = value.get("content") if isinstance(value, dict) else value
            if isinstance(spelling, str):
                named[name] = spelling
    return named
