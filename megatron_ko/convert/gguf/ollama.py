"""A Modelfile for Ollama: the template of the chat, every stop, and the recommended sampling."""

from dataclasses import dataclass, field
from pathlib import Path

from megatron_ko.convert.gguf.ollama_chats import ollama_template, recognise
from megatron_ko.convert.gguf.vocabulary import GgufVocabulary
from megatron_ko.convert.hf_files import read_generation
from megatron_ko.convert.tokenizer_class import load_oracle
from megatron_ko.errors import ConvertError

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


@dataclass(frozen=True)
class Modelfile:
    """The Modelfile of a folder.

    Attributes:
        text: of the file, without the line that names the GGUF file; None: there is no Modelfile.
        format: of conversations; None without a chat template, and without a Modelfile.
        notes: why there is none, or what the chat template does and Ollama does not.
    """

    text: str | None
    format: str | None
    notes: tuple[str, ...] = ()

    def summary(self) -> "ModelfileSummary":
        """What is said of it."""
        return ModelfileSummary(self.text is not None, self.format, [*self.notes])


@dataclass(frozen=True)
class ModelfileSummary:
    """What lineage.json and --json say of a Modelfile: whether there is one, its format of conversations, and notes."""

    modelfile: bool = True
    format: str | None = None
    notes: list[str] = field(default_factory=list)


def check_modelfile_text(text: str, what: str) -> None:
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


def modelfile(folder: Path, vocabulary: GgufVocabulary, context: int) -> Modelfile:
    """A Modelfile, or why Ollama cannot write this folder's conversations.

    Args:
        folder: Hugging Face's.
        vocabulary: for the stops.
        context: longest context of the model.
    """
    chat = None if vocabulary.template is None else recognise(load_oracle(folder), vocabulary.begin)
    if isinstance(chat, str):
        return Modelfile(None, None, (f"Ollama's template cannot say what the folder's chat template writes: {chat}",))
    template = PLAIN if chat is None else ollama_template(chat)
    stops = [vocabulary.tokens[number] for number in vocabulary.stops]
    stops += [] if chat is None else [stop for stop in chat.format.stops if stop not in stops]
    try:
        check_modelfile_text(template, "the template")
        for stop in stops:
            check_modelfile_text(stop, "a token that ends an answer")
    except ConvertError as error:
        return Modelfile(None, None, (" ".join(str(error).split()),))
    given = read_generation(folder)
    sampling = _SAMPLING | {ours: given[theirs] for theirs, ours in _NAMES.items() if given.get(theirs) is not None}
    sampling["num_ctx"] = min(sampling["num_ctx"], context)
    text = "\n".join(
        [
            f"TEMPLATE {_THREE}{template}{_THREE}",
            *(f"PARAMETER stop {quoted(stop)}" for stop in stops),
            *(f"PARAMETER {name} {number}" for name, number in sampling.items()),
            "",
        ]
    )
    return Modelfile(text, chat.format.name, chat.notes) if chat is not None else Modelfile(text, None)
