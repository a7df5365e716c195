"""Records to preferences: a better and a worse answer to one prompt, or one answer with a verdict.

pair      prompt, chosen, rejected: texts, or messages; or chosen and rejected as whole conversations
verdict   prompt, completion, label: true for a good answer
"""

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from megatron_ko.data.chat.conversation import (
    Conversation,
    RecordError,
    as_messages,
    check_messages,
    text_of,
    tools_of,
    user_and_answer,
    with_system,
)
from megatron_ko.data.tokenizer.chat_template import ASSISTANT
from megatron_ko.data.tokens.marks import Mark
from megatron_ko.storage.open_json import JsonObject

PreferenceKind = Literal["pairs", "verdicts"]


@dataclass(frozen=True)
class Response:
    """A conversation of which only what follows ``prompt`` messages counts, and how."""

    conversation: Conversation
    prompt: int
    mark: Mark

    @property
    def _parts(self) -> tuple[tuple[JsonObject, ...], tuple[JsonObject, ...]]:
        messages = self.conversation.messages
        return messages[: self.prompt], messages[self.prompt :]

    def differs_from(self, other: "Response") -> bool:
        """Whether both prompt and answer are other ones."""
        return all(mine != theirs for mine, theirs in zip(self._parts, other._parts, strict=True))

    def with_answer_of(self, other: "Response") -> "Response":
        """The same prompt, and the answer to another one."""
        (before, _), (_, after) = self._parts, other._parts
        return Response(replace(self.conversation, messages=(*before, *after)), self.prompt, Mark.MISMATCHED)


def recognise_preference(record: JsonObject) -> PreferenceKind | None:
    """Which kind of preference a record holds; None if none."""
    if "chosen" in record and "rejected" in record:
        return "pairs"
    if "prompt" in record and "completion" in record and "label" in record:
        return "verdicts"
    return None


def read_preference(record: JsonObject, kind: PreferenceKind) -> tuple[Response, ...]:
    """The responses in a record: chosen and rejected, or a single one.

    Raises:
        RecordError: something is missing or wrong; both answers are equal.
    """
    if recognise_preference(record) != kind:
        raise RecordError(f"no {kind}: fields {', '.join(sorted(map(str, record)))}")
    if kind == "verdicts":
        if record["label"] not in (True, False):  # 0 and 1, too
            raise RecordError(f"no verdict: label is {record['label']!r}, not true or false")
        before, after = _prompt_and_answer(record, "completion")
        if not before:
            raise RecordError("no prompt")
        return (_response(record, before, after, bool(record["label"])),)
    chosen, rejected = _prompt_and_answer(record, "chosen"), _prompt_and_answer(record, "rejected")
    if not chosen[0] and not rejected[0]:  # whole conversations
        chosen, rejected = _shared_prefix(chosen[1], rejected[1])
        _check_prompt(record, chosen[0])
    if chosen[0] != rejected[0]:
        raise RecordError("no shared prompt: both answers are to something else")
    if chosen[1] == rejected[1]:
        raise RecordError("equal answers: nothing to prefer")
    return _response(record, *chosen, True), _response(record, *rejected, False)


_Split = tuple[tuple[JsonObject, ...], tuple[JsonObject, ...]]


def _prompt_and_answer(record: JsonObject, field: str) -> _Split:
    """The messages of the prompt, none if the field holds a whole conversation, and those of the answer."""
    prompt, answer = record.get("prompt"), record[field]
    if isinstance(prompt, list):
        before, _ = as_messages(prompt)
    else:
        before = () if prompt is None else user_and_answer(text_of(record, "prompt"), "")[:1]
    before = with_system(record, before) if before else before
    if isinstance(answer, str):
        if not before:
            raise RecordError("no prompt")
        return before, ({"role": ASSISTANT, "content": answer},)
    messages, _ = as_messages(answer)
    if before and messages[: len(before)] == before:
        return before, messages[len(before) :]
    if before and messages and messages[0]["role"] == ASSISTANT:
        return before, messages
    return (), with_system(record, messages)


def _check_prompt(record: JsonObject, shared: tuple[JsonObject, ...]) -> None:
    """Both conversations begin alike, and with the prompt if there is one."""
    prompt = record.get("prompt")
    asked = prompt if isinstance(prompt, str) else None
    if not shared or (asked is not None and all(message["content"] != asked for message in shared)):
        raise RecordError("no shared prompt: both answers are to something else")


def _shared_prefix(chosen: tuple[JsonObject, ...], rejected: tuple[JsonObject, ...]) -> tuple[_Split, _Split]:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = min(sum(1 for _ in same), len(chosen) - 1, len(rejected) - 1)
    return (chosen[:shared], chosen[shared:]), (rejected[:shared], rejected[shared:])


def _response(
    record: JsonObject, before: tuple[JsonObject, ...], after: tuple[JsonObject, ...], good: bool
) -> Response:
    messages = (*before, *after)
    check_messages(messages)
    if not after or messages[-1]["role"] != ASSISTANT:
        raise RecordError("no answer: the last message is none")
    return Response(Conversation(messages, tools_of(record)), len(before), Mark.GOOD if good else Mark.BAD)
