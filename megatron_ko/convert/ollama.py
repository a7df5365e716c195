"""A Modelfile for Ollama: the template of the chat, every stop, and the recommended sampling."""

from collections.abc import Sequence
from pathlib import Path

from megatron_ko.convert.gguf_reference import CONVERSATIONS, rendered
from megatron_ko.convert.gguf_vocabulary import Vocabulary
from megatron_ko.convert.hf_files import read_generation
from megatron_ko.convert.texts import load_oracle
from megatron_ko.errors import ConvertError

# ChatML as Ollama's Go template; ``chatml`` is the same in Python.
CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
# Without a template the prompt is continued as it is.
PLAIN = "{{ .Prompt }}"
_THREE = '"""'
# FRANKENSTALLM's recommendation; generation_config.json wins.
_SAMPLING = {
    "temperature": 0.7,
    "repeat_penalty": 1.2,
    "top_p": 0.9,
    "top_k": 50,
    "num_predict": 512,
    "num_ctx": 4096,
}
_NAMES = {
    "temperature": "temperature",
    "repetition_penalty": "repeat_penalty",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_new_tokens": "num_predict",
}


def chatml(messages: Sequence[dict[str, str]]) -> str:
    """A conversation in ChatML, up to where the answer begins."""
    turns = (f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def check_sayable(text: str, what: str) -> None:
    """Refuse what a Modelfile cannot hold: Ollama drops characters that cannot be printed, and knows no escapes.

    Args:
        text: the value.
        what: whose it is.

    Raises:
        ConvertError: with the characters.
    """
    lost = [letter for letter in text if not (letter.isprintable() or letter in "\t\r\n")]
    if lost or _THREE in text:
        raise ConvertError(
            f"Ollama's Modelfile cannot hold {what}",
            got=f"{text!r}, with {', '.join(map(repr, lost)) or _THREE}",
            expected="characters that can be printed, and no three quotation marks together",
        )


def quoted(text: str) -> str:
    """A value between quotation marks: one, or three where it holds one itself. Nothing in it is ever escaped."""
    marks = _THREE if '"' in text else '"'
    return f"{marks}{text}{marks}"


def modelfile(folder: Path, vocabulary: Vocabulary, context: int) -> str:
    """The text of a Modelfile, without the line that names the GGUF file.

    Args:
        folder: Hugging Face's.
        vocabulary: for the stops.
        context: longest context of the model.

    Raises:
        ConvertError: the folder's chat template is not ChatML: Ollama would write another chat than the training. Or a
            Modelfile cannot hold a stop.
    """
    template = PLAIN if vocabulary.template is None else _checked_chatml(folder)
    stops = [vocabulary.tokens[number] for number in vocabulary.stops]
    if vocabulary.template is not None and "<|im_start|>" not in stops:
        stops.append("<|im_start|>")
    for stop in stops:
        check_sayable(stop, "a token that ends an answer")
    given = read_generation(folder)
    sampling = _SAMPLING | {ours: given[theirs] for theirs, ours in _NAMES.items() if given.get(theirs) is not None}
    sampling["num_ctx"] = min(sampling["num_ctx"], context)
    return "\n".join(
        [
            f"TEMPLATE {_THREE}{template}{_THREE}",
            *(f"PARAMETER stop {quoted(stop)}" for stop in stops),
            *(f"PARAMETER {name} {number}" for name, number in sampling.items()),
            "",
        ]
    )


def _checked_chatml(folder: Path) -> str:
    for messages, text in zip(CONVERSATIONS, rendered(load_oracle(folder)), strict=True):
        if text != chatml(messages):
            raise ConvertError(
                "Ollama's template is known for ChatML only, and the folder's chat template writes something else",
                got=repr(text)[:300],
                expected=repr(chatml(messages))[:300],
                remedy="train and export with a ChatML template, which adds no message of its own",
            )
    return CHATML
