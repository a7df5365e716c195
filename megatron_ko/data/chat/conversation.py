"""Records to conversations. A schema is recognised by the fields of a record and never guessed.

messages        messages, and perhaps tools                  OpenAI, Hugging Face
conversations   conversations with from and value            ShareGPT
alpaca          instruction, output; input, system, history  Alpaca
completion      prompt, completion: texts, or messages       TRL
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_ko.data.tokenizer.chat_template import ASSISTANT
from megatron_ko.storage.open_json import JsonObject

ROLES = ("system", "developer", "user", ASSISTANT, "tool")
_SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "assistant": ASSISTANT,
    "model": ASSISTANT, "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip


class RecordError(Exception):
    """Why a record is no conversation."""


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template sees them.

    Attributes:
        messages: each has a "role" and a "content".
        tools: JSON schemas of what the model may call.
        untrained: numbers of answers that are not to be learnt ("loss": false).
    """

    messages: tuple[JsonObject, ...]
    tools: tuple[JsonObject, ...] = ()
    untrained: frozenset[int] = frozenset()


def recognise(record: JsonObject) -> str | None:
    """Which schema a record follows; None if it is none of them."""
    return next((name for name, schema in _SCHEMAS.items() if schema.fits(record)), None)


def read_conversation(record: JsonObject) -> Conversation:
    """The conversation in a record.

    Raises:
        RecordError: no schema fits, or something in it is missing or wrong.
    """
    name = recognise(record)
    if name is None:
        raise RecordError(f"no conversation: fields {', '.join(sorted(map(str, record)))}")
    conversation = _SCHEMAS[name].read(record)
    check_messages(conversation.messages)
    if conversation.messages[-1]["role"] != ASSISTANT:
        raise RecordError(f"no answer: the last message is from {conversation.messages[-1]['role']!r}")
    return conversation


def check_messages(messages: Sequence[JsonObject]) -> None:
    """Refuse what no model should learn.

    Raises:
        RecordError: no message; an unknown role; an empty answer; a conversation that an answer begins.
    """
    if not messages:
        raise RecordError("no message")
    spoken = [message["role"] for message in messages if message["role"] not in ("system", "developer")]
    for number, message in enumerate(messages):
        role = message["role"]
        if role not in ROLES:
            raise RecordError(f"unknown role: {role!r} in message {number}")
        if role == ASSISTANT and not (str(message["content"] or "").strip() or message.get("tool_calls")):
            raise RecordError(f"empty answer: message {number}")
    if spoken and spoken[0] == ASSISTANT:
        raise RecordError("begins with an answer: nothing was asked")


def as_messages(value: object) -> tuple[tuple[JsonObject, ...], frozenset[int]]:
    """A list of messages, and the numbers of those with "loss": false.

    Raises:
        RecordError: it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise RecordError("no list of messages")
    messages, untrained = [], set()
    for number, given in enumerate(value):
        message = {name: held for name, held in given.items() if held is not None}
        if not _is_trained(message, number):
            untrained.add(number)
        _check_calls(message, number)
        if not isinstance(message.get("role"), str):
            raise RecordError(f"no role: message {number}")
        content = message.setdefault("content", "" if message.get("tool_calls") else None)
        if not isinstance(content, str):
            raise RecordError(f"no text: the content of message {number} is {type(content).__name__}")
        messages.append(message)
    return tuple(messages), frozenset(untrained)


def _is_trained(message: JsonObject, number: int) -> bool:
    """What "loss" (true or false) or "weight" (1 or 0) of a message says; both are taken out of it."""
    loss, weight = message.pop("loss", True), message.pop("weight", 1)
    if not isinstance(loss, bool) or weight not in (0, 1):
        raise RecordError(f"malformed loss: message {number} has {loss!r} and weight {weight!r}")
    return loss and bool(weight)


def _check_calls(message: JsonObject, number: int) -> None:
    calls = message.get("tool_calls", [])
    named = isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function", call).get("name"), str) for call in calls
    )
    if not named:
        raise RecordError(f"malformed tool_calls: message {number} needs a list of objects with a function's name")


def with_system(record: JsonObject, messages: tuple[JsonObject, ...]) -> tuple[JsonObject, ...]:
    """The messages behind the record's own system text, if it has one."""
    if not record.get("system") or (messages and messages[0]["role"] == "system"):
        return messages
    return {"role": "system", "content": text_of(record, "system")}, *messages


def user_and_answer(prompt: str, answer: str) -> tuple[JsonObject, ...]:
    """One question and its answer."""
    return {"role": "user", "content": prompt}, {"role": ASSISTANT, "content": answer}


def text_of(record: JsonObject, field: str) -> str:
    """A field that must be a text.

    Raises:
        RecordError: it is none.
    """
    value = record.get(field)
    if not isinstance(value, str):
        raise RecordError(f"no text: field {field!r} is {type(value).__name__}")
    return value


def tools_of(record: JsonObject) -> tuple[JsonObject, ...]:
    """The tools of a record; some files hold them as a JSON text.

    Raises:
        RecordError: they are no list of objects.
    """
    tools = record.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "[]")
        except ValueError:
            raise RecordError("malformed tools: no JSON") from None
    if not isinstance(tools or [], list) or not all(isinstance(one, dict) for one in tools or []):
        raise RecordError("malformed tools: no list of objects")
    return tuple(tools or ())


@dataclass(frozen=True)
class _Schema:
    """Which records follow it, and how they are read."""

    fits: Callable[[JsonObject], bool]
    read: Callable[[JsonObject], Conversation]


def _messages(record: JsonObject) -> Conversation:
    messages, untrained = as_messages(record["messages"])
    whole = with_system(record, messages)
    shift = len(whole) - len(messages)
    return Conversation(whole, tools_of(record), frozenset(number + shift for number in untrained))


def _sharegpt(record: JsonObject) -> Conversation:
    turns = record["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError("no list of messages")
    if turns and all(turn.get("role") is not None for turn in turns):
        return _messages({**record, "messages": turns})
    messages: list[JsonObject] = []
    if isinstance(record.get("system"), str) and record["system"]:
        messages.append({"role": "system", "content": record["system"]})
    shift, untrained = len(messages), set()
    for number, turn in enumerate(turns):
        speaker = turn.get("from")
        if speaker not in _SHAREGPT_ROLES:
            raise RecordError(f"unknown role: {speaker!r} in message {number}")
        if not _is_trained({name: turn[name] for name in ("loss", "weight") if turn.get(name) is not None}, number):
            untrained.add(number + shift)
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": text_of(turn, "value")})
    return Conversation(tuple(messages), tools_of(record), frozenset(untrained))


def _alpaca(record: JsonObject) -> Conversation:
    messages: list[JsonObject] = []
    if record.get("system"):
        messages.append({"role": "system", "content": text_of(record, "system")})
    for pair in record.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RecordError("malformed history: no list of pairs of texts")
        messages += user_and_answer(*pair)
    question = text_of(record, "instruction")
    if record.get("input"):
        question = f"{question}\n{text_of(record, 'input')}"
    return Conversation((*messages, *user_and_answer(question, text_of(record, "output"))))


def _completion(record: JsonObject) -> Conversation:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Conversation(with_system(record, user_and_answer(prompt, completion)))
    before = with_system(record, as_messages(prompt)[0])
    after, untrained = as_messages(completion)
    known = range(len(before))  # the prompt is context
    return Conversation((*before, *after), tools_of(record), frozenset({*known, *(len(before) + n for n in untrained)}))


_SCHEMAS = {
    "messages": _Schema(lambda record: "messages" in record, _messages),
    "conversations": _Schema(lambda record: "conversations" in record, _sharegpt),
    "alpaca": _Schema(lambda record: "instruction" in record and "output" in record, _alpaca),
    "completion": _Schema(lambda record: "prompt" in record and "completion" in record, _completion),
}
