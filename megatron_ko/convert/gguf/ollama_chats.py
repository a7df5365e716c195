"""Formats of conversations that Ollama can write, and which of them a folder's chat template writes.

A format is data. ``ollama_template`` writes it in the language of Ollama's templates, ``format_chat`` applies it in
Python. Which format a template writes is found by what it renders. Ollama's templates cannot strip or search a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_ko.convert.gguf.reference import CONVERSATIONS, render

Messages = Sequence[dict[str, str]]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation is written.

    Attributes:
        name: for people.
        turns: what stands before and after a message of a role; "": of every other role, whose name is {role}. {eos}
            is the tokenizer's end token.
        answer: what stands before the answer.
        stops: texts that begin another turn.
        joined: a message of the user right after the system's is part of the same turn, and has nothing before it.
    """

    name: str
    turns: dict[str, tuple[str, str]]
    answer: str
    stops: tuple[str, ...]
    joined: bool = False

    def turn(self, role: str) -> tuple[str, str]:
        """What stands before and after a message."""
        before, after = self.turns.get(role) or self.turns[""]
        return before.replace("{role}", role), after


def _mistral(name: str, user: tuple[str, str], answer: tuple[str, str]) -> ChatFormat:
    turns = {"system": (user[0], "\n\n"), "user": user, "assistant": answer}
    return ChatFormat(name, turns, "", ("[INST]",), joined=True)


FORMATS = (
    ChatFormat("ChatML", {"": ("<|im_start|>{role}\n", "<|im_end|>\n")}, "<|im_start|>assistant\n", ("<|im_start|>",)),
    ChatFormat(
        "Llama 3",
        {"": ("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")},
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|start_header_id|>",),
    ),
    _mistral("Mistral", ("[INST] ", " [/INST]"), ("", "{eos}")),
    _mistral("Mistral, a space after an answer", ("[INST] ", " [/INST]"), ("", "{eos} ")),
    _mistral("Mistral, a space before a question", (" [INST] ", " [/INST]"), (" ", "{eos}")),
    _mistral("Mistral v3", ("[INST] ", "[/INST]"), (" ", "{eos}")),
    ChatFormat(
        "Mistral v7",
        {
            "system": ("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"),
            "user": ("[INST] ", "[/INST]"),
            "assistant": (" ", "{eos}"),
        },
        "",
        ("[INST]",),
    ),
    ChatFormat("Zephyr", {"": ("<|{role}|>\n", "{eos}\n")}, "<|assistant|>\n", ("<|user|>",)),
    ChatFormat("Phi-3", {"": ("<|{role}|>\n", "<|end|>\n")}, "<|assistant|>\n", ("<|user|>",)),
    ChatFormat(
        "Gemma",
        {
            "system": ("<start_of_turn>user\n", "\n\n"),
            "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
        },
        "<start_of_turn>model\n",
        ("<start_of_turn>",),
        joined=True,
    ),
    ChatFormat(
        "EXAONE",
        {"user": ("[|user|]", "\n"), "": ("[|{role}|]", "[|endofturn|]\n")},
        "[|assistant|]",
        ("[|user|]",),
    ),
    ChatFormat(
        "SOLAR",
        {
            "system": ("### System:\n", "\n\n"),
            "user": ("### User:\n", "\n\n"),
            "assistant": ("### Assistant:\n", "\n\n"),
        },
        "### Assistant:\n",
        ("### User:",),
    ),
)


@dataclass(frozen=True)
class Chat:
    """A format as one folder's template writes it.

    Attributes:
        format: with the tokenizer's end token.
        begin: what stands before the first turn.
        default: the system message of a conversation that begins without one; None where there is none.
        notes: what the template does and Ollama does not.
    """

    format: ChatFormat
    begin: str = ""
    default: str | None = None
    notes: tuple[str, ...] = ()


def format_chat(chat: Chat, messages: Messages) -> str:
    """A conversation as Ollama writes it, up to where the answer begins."""
    text, joined = chat.begin, False
    if chat.default is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": chat.default}, *messages]
    for message in messages:
        before, after = chat.format.turn(message["role"])
        text += ("" if joined and message["role"] == "user" else before) + message["content"] + after
        joined = chat.format.joined and message["role"] == "system"
    return text + chat.format.answer


def ollama_template(chat: Chat) -> str:
    """The same as Ollama's template."""
    form = chat.format
    joins = "{{ $joined = true }}" if form.joined else ""
    parts = [_plain(chat.begin), "{{ $joined := false }}" if form.joined else "", "{{ range $i, $_ := .Messages }}"]
    if chat.default is not None:
        before, after = form.turn("system")
        first = f"{_plain(before + chat.default + after)}{joins}"
        parts.append(f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{first}{{{{ end }}}}')
    turns = [*form.turns.items()]
    for number, (role, (before, after)) in enumerate(turns):
        asked = f'if eq .Role "{role}" ' if role else ""
        otherwise = "else " if number else ""
        parts.append(f"{{{{ {otherwise}{asked}}}}}" if len(turns) > 1 else "")
        start = "{{ .Role }}".join(map(_plain, before.split("{role}")))
        if form.joined and role == "user":
            start = f"{{{{ if not $joined }}}}{start}{{{{ end }}}}"
        sets = joins if role == "system" else "{{ $joined = false }}" if form.joined else ""
        parts.append(f"{start}{{{{ .Content }}}}{_plain(after)}{sets}")
    return "".join([*parts, "{{ end }}" * (1 + (len(turns) > 1)), _plain(form.answer)])


def _plain(text: str) -> str:
    return text.replace("{", '{{ "{" }}')


def _said(*contents: str) -> list[dict[str, str]]:
    """A conversation; a first content that is empty: without a system message."""
    roles = ("system", *("user", "assistant") * len(contents))
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False) if text]


# What every format has to write as the template does.
PROBES: dict[str, Messages] = {
    **{f"conversation {number}": messages for number, messages in enumerate(CONVERSATIONS, 1)},
    "several turns after a system message": _said(
        "존댓말로.", "안녕?", "네, 안녕하세요.", "이름은?", "없어요.", "그래."
    ),
    "several turns": _said("", "하나", "둘", "셋", "넷", "다섯"),
    "marks and lines": _said("a {{ b }}\n\n# c", "<b>'\"&\\n\n\n{% x %}", "```\n[1] | 2\n```", "끝?"),
    "thoughts in an answer": _said(
        "", "2 + 2는?", "<think>\n둘에 둘\n</think>\n\n4", "고마워.", "<think>x</think>네", "응"
    ),
}


def recognise(oracle: Any, begins: bool) -> Chat | str:
    """The format that a chat template writes, or how it differs from all known ones.

    Args:
        oracle: transformers' tokenizer, with a chat template.
        begins: llama.cpp puts the begin token before every prompt.
    """
    texts = {name: render(oracle, messages) for name, messages in PROBES.items()}
    nearest = ""
    for begin in dict.fromkeys(("", oracle.bos_token or "")):
        if any(text is not None and not text.startswith(begin) for text in texts.values()):
            continue
        rest = {name: text and text.removeprefix(begin) for name, text in texts.items()}
        for form in FORMATS:
            chat = _fitted(form, oracle.eos_token or "", rest["conversation 1"])
            wrong = [name for name, text in rest.items() if not _agrees(chat, PROBES[name], text)]
            wrong += [] if wrong else _beyond(chat, oracle, begin)
            if not wrong:
                said = _notes(chat, oracle, begin, begins)
                return replace(chat, begin="" if begins else begin, notes=tuple(said))
            if wrong[0] not in list(PROBES)[: len(CONVERSATIONS)]:
                nearest = f"{form.name} in all but {wrong[0]}"
    example = next((text for text in texts.values() if text is not None), None)
    return nearest or f"no known format: {example!r}"[:300]


def _fitted(form: ChatFormat, end: str, text: str | None) -> Chat:
    """The format with the end token, and the system message that a template adds to a first question."""
    turns = {
        role: (before.replace("{eos}", end), after.replace("{eos}", end))
        for role, (before, after) in form.turns.items()
    }
    chat = Chat(replace(form, turns=turns))
    first = CONVERSATIONS[0]
    if text is None or text == format_chat(chat, first):
        return chat
    head, _, tail = format_chat(replace(chat, default="\0"), first).partition("\0")
    fits = text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)
    return replace(chat, default=text[len(head) : len(text) - len(tail)]) if fits else chat


def _agrees(chat: Chat, messages: Messages, text: str | None) -> bool:
    """Whether a text is right; a template may refuse a conversation only for its system message."""
    return messages[0]["role"] == "system" if text is None else text == format_chat(chat, messages)


def _beyond(chat: Chat, oracle: Any, begin: str) -> Iterator[str]:
    """What a template does beyond the format: write the date, or change the spaces around a message in its own way."""
    first = CONVERSATIONS[0]
    if render(oracle, first, strftime_now=lambda style: "\0") != begin + format_chat(chat, first):
        yield "the date"
    for role in ROLES:
        text, spaced = _spaced(oracle, role)
        stripped = [{**message, "content": message["content"].strip()} for message in spaced]
        if text is not None and text not in (begin + format_chat(chat, spaced), begin + format_chat(chat, stripped)):
            yield f"spaces around a message of role {role}"


def _spaced(oracle: Any, role: str) -> tuple[str | None, Messages]:
    """A conversation with spaces around the messages of one role, and what the template writes."""
    contents = _said("짧게.", "안녕?", "네.", "그래.")
    spaced = [
        {**message, "content": f" \n{message['content']}\n "} if message["role"] == role else message
        for message in contents[0 if role == "system" else 1 :]
    ]
    return render(oracle, spaced), spaced


def _notes(chat: Chat, oracle: Any, begin: str, begins: bool) -> Iterator[str]:
    strips = []
    for role in ROLES:
        text, spaced = _spaced(oracle, role)
        if text not in (None, begin + format_chat(chat, spaced)):
            strips.append(role)
    if strips:
        yield f"the template strips messages of {', '.join(strips)}; Ollama's cannot, and keeps spaces around them"
    if any(render(oracle, messages) is None for messages in PROBES.values()):
        yield "the template refuses system messages; Ollama writes them as other templates of this format do"
    if begins and not begin:
        yield "the template writes no begin token; Ollama and llama.cpp put one before every conversation"
