"""A tokenizer.json in llama.cpp's terms: which of its algorithms gives the same ids, and what that one must be told.

llama.cpp knows algorithms, not rules: byte-level BPE with one of its own pre-tokenizers, SentencePiece's BPE by scores
("llama"), and a Unigram model with byte fallback ("plamo2"). Its "llama" merges greedily and its "t5" has no bytes:
neither is a Unigram model of ours. What is not one of the three is refused here; that the ids are the same is proved
token by token in ``tokens.py``.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_ko.convert.gates import running
from megatron_ko.convert.hf_files import GENERATION, end_of_turn, read_json
from megatron_ko.convert.tokenizer_class import load_oracle
from megatron_ko.data.tokenizer.trainers import QWEN2_PATTERN
from megatron_ko.errors import ConvertError
from megatron_ko.storage.open_json import JsonObject

# llama.cpp's numbers of the kinds of tokens, which are SentencePiece's.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# llama.cpp's "plamo2" rounds scores to 1e-4 and gives a character without a piece -1000. Scores of ours are multiples
# of 1/64, which are whole numbers there once they are multiplied by 4 or more.
_PLAMO_UNKNOWN = 1000.0
_NEVER = -1e4
# llama.cpp stops at these in every vocabulary that has them. Only those that older releases know as well.
_KNOWN_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>",
}  # fmt: skip


@dataclass(frozen=True)
class GgufVocabulary:
    """Everything that a GGUF file says of its tokenizer.

    Attributes:
        algorithm: tokenizer.ggml.model.
        pre: tokenizer.ggml.pre.
        tokens, kinds: text and kind of every id.
        scores: of every id, where the algorithm has some.
        merges: of byte-level BPE, in order.
        named: ids of bos, eos, unk, pad, eot, eom; absent where there is none.
        begin: whether transformers puts the begin token before a text.
        template: the chat template, None where there is none.
        stops: ids that end an answer.
    """

    algorithm: Literal["gpt2", "llama", "plamo2"]
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] | None = None
    named: dict[str, int] = field(default_factory=dict)
    begin: bool = False
    template: str | None = None
    stops: tuple[int, ...] = ()

    def describe(self, writer: Any) -> None:
        """Add the metadata to a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.algorithm)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        if self.scores is not None:
            writer.add_token_scores(list(self.scores))
        if self.merges is not None:
            writer.add_token_merges(list(self.merges))
        for name, number in self.named.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.begin)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(False)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path) -> GgufVocabulary:
    """The tokenizer of a Hugging Face folder.

    Raises:
        ConvertError: there is none, or llama.cpp has no algorithm for it.
    """
    content, settings = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    tokens = _tokens(content)
    kinds = _kinds(tokens, content)
    template = chat_template(folder, settings)
    ids = {text: number for number, text in enumerate(tokens)}
    spelt = {name: _content(settings.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    named = {name: ids[text] for name, text in spelt.items() if text in ids}
    stops = _stops(folder, tokens, template, named.get("eos"))
    named |= _turn_ends(stops, tokens, named.get("eos"))
    begin = _begins(content.get("post_processor")) or bool(settings.get("add_bos_token"))
    common: JsonObject = {"kinds": kinds, "named": named, "begin": begin, "template": template, "stops": stops}
    vocabulary = GgufVocabulary(**_form(content, tokens, kinds), **common)
    if twice := [text for text, number in Counter(vocabulary.tokens).items() if number > 1]:  # llama.cpp aborts
        raise ConvertError("two ids of the tokenizer have the same text", got=repr(twice[:5]), expected="one each")
    return vocabulary


def _begins(post_processor: JsonObject | None) -> bool:
    """Whether the tokenizer puts a token before a text, as Llama's do; that it is the begin token is proved later."""
    steps = (post_processor or {}).get("processors", [post_processor])
    return any(step and step["type"] == "TemplateProcessing" and "SpecialToken" in step["single"][0] for step in steps)


def _form(content: JsonObject, tokens: tuple[str, ...], kinds: tuple[int, ...]) -> JsonObject:
    """The algorithm, and the fields that only it needs."""
    model, steps = content["model"], content.get("pre_tokenizer") or {}
    if content.get("normalizer") is not None:
        raise _refused("a normalizer", content["normalizer"], "none: llama.cpp does not normalise")
    if model["type"] == "BPE" and '"ByteLevel"' in json.dumps(steps):
        merges = tuple(" ".join(merge) for merge in _merges(model))
        return {"algorithm": "gpt2", "pre": _pre_tokenizer(steps), "tokens": tokens, "merges": merges}
    if not model.get("byte_fallback"):
        raise _refused("a model without byte fallback", model["type"], "byte_fallback, or byte-level BPE")
    if '"Metaspace"' in json.dumps([steps, content.get("decoder")]):
        raise _refused("a pre-tokenizer that adds spaces", "Metaspace", "pieces with their own spaces")
    if model["type"] == "Unigram":
        scores = _unigram_scores(dict(model["vocab"]), tokens, kinds)
        return {"algorithm": "plamo2", "pre": "default", "tokens": tokens, "scores": scores}
    if model["type"] == "BPE":
        marked = (
            text.replace(" ", _SPACE) if kind == NORMAL else text for text, kind in zip(tokens, kinds, strict=True)
        )
        return {"algorithm": "llama", "pre": "default", "tokens": tuple(marked), "scores": _bpe_scores(model, tokens)}
    raise _refused("an algorithm", model["type"], "BPE or Unigram")


def _refused(what: str, got: object, expected: str) -> ConvertError:
    return ConvertError(
        f"llama.cpp cannot encode as this tokenizer does: {what}", got=str(got)[:300], expected=expected
    )


def _pre_tokenizer(described: JsonObject) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer, by what it does and not by whose it is."""
    steps = described["pretokenizers"] if described["type"] == "Sequence" else [described]
    shape = tuple(_step(step) for step in steps)
    known = {
        (("split", QWEN2_PATTERN), ("bytes", False)): "qwen2",
        (("split", _LLAMA3_PATTERN), ("bytes", False)): "llama-bpe",
        (("digits", True), ("bytes", True)): "smollm",
        (("bytes", True),): "gpt-2",
    }
    if shape not in known:
        raise _refused("its pre-tokenizer", shape, f"that of {', '.join(known.values())}")
    return known[shape]


def _step(step: JsonObject) -> tuple[str, Any]:
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return "split", step["pattern"].get("Regex")
    if step["type"] == "Digits":
        return "digits", step["individual_digits"]
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "bytes", step["use_regex"]
    return step["type"], json.dumps(step)


def _unigram_scores(pieces: dict[str, float], tokens: tuple[str, ...], kinds: tuple[int, ...]) -> tuple[float, ...]:
    ordinary = {text: pieces[text] for text, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    if lost := next((text for text in ordinary if not all(letter in ordinary for letter in text)), None):
        raise _refused("a piece with a character that has no piece of its own", repr(lost), "one for each character")
    scale = 2.0 ** math.floor(math.log2(_PLAMO_UNKNOWN / (1 + abs(min(ordinary.values())))))
    return tuple(scale * ordinary[text] if kind == NORMAL else _NEVER for text, kind in zip(tokens, kinds, strict=True))


def _bpe_scores(model: JsonObject, tokens: tuple[str, ...]) -> tuple[float, ...]:
    """SentencePiece's order of merges: the pair whose piece has the highest score goes first."""
    ranks: dict[str, int] = {}
    for left, right in _merges(model):
        ranks.setdefault(left + right, len(ranks))
    return tuple(float(-ranks.get(text, 0)) for text in tokens)


def _merges(model: JsonObject) -> list[list[str]]:
    return [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]


def _tokens(content: JsonObject) -> tuple[str, ...]:
    vocabulary = content["model"]["vocab"]
    by_id = {number: text for text, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    if isinstance(vocabulary, list):
        by_id = {number: text for number, (text, _) in enumerate(vocabulary)}
    by_id |= {token["id"]: token["content"] for token in content["added_tokens"]}
    if missing := sorted(set(range(len(by_id))) - by_id.keys()):
        raise ConvertError("the tokenizer has ids without a token", got=str(missing[:5]), expected="ids without gaps")
    return tuple(by_id[number] for number in range(len(by_id)))


def _kinds(tokens: tuple[str, ...], content: JsonObject) -> tuple[int, ...]:
    model = content["model"]
    special = {token["id"]: bool(token["special"]) for token in content["added_tokens"]}

    def kind(number: int, text: str) -> int:
        if number in special:
            unknown = text == model.get("unk_token") or number == model.get("unk_id")
            return UNKNOWN if unknown else CONTROL if special[number] else USER_DEFINED
        return BYTE if model.get("byte_fallback") and _BYTE.fullmatch(text) else NORMAL

    return tuple(kind(number, text) for number, text in enumerate(tokens))


def chat_template(folder: Path, settings: JsonObject) -> str | None:
    """The one template of a folder, from its file or from tokenizer_config.json.

    Raises:
        ConvertError: the two differ, or there are several.
    """
    path, inline = folder / "chat_template.jinja", settings.get("chat_template")
    filed = path.read_text(encoding="utf-8") if path.is_file() else None
    if inline is not None and (not isinstance(inline, str) or filed not in (None, inline)):
        raise ConvertError(
            "the folder has more than one chat template",
            got=f"{path.name} and chat_template in tokenizer_config.json" if filed else "a list of templates",
            expected="one",
            remedy=f"keep the one that the model was trained with in {path.name}",
        )
    return filed if filed is not None else inline


def _stops(folder: Path, tokens: tuple[str, ...], template: str | None, eos: int | None) -> tuple[int, ...]:
    """Ids that end an answer: what the template puts after it, generation_config.json's, the end token."""
    path = folder / GENERATION
    named = _json(path).get("eos_token_id") if path.is_file() else None
    turn = None
    if template is not None:
        with running("the chat template"):
            turn = end_of_turn(load_oracle(folder))
    found = [number for number in (turn, *(named if isinstance(named, list) else [named]), eos) if number is not None]
    if strange := [number for number in found if not (isinstance(number, int) and 0 <= number < len(tokens))]:
        raise ConvertError(
            f"{path.name} ends answers at ids that the tokenizer does not have",
            got=f"eos_token_id: {strange}",
            expected=f"ids from 0 to {len(tokens) - 1:,}",
        )
    return tuple(dict.fromkeys(found))


def _turn_ends(stops: Sequence[int], tokens: tuple[str, ...], eos: int | None) -> dict[str, int]:
    """The two ids that a file names besides the end token: first those that llama.cpp does not know by name."""
    ends = [number for number in stops if number != eos]
    if len(ends) > 2:
        ends.sort(key=lambda number: tokens[number] in _KNOWN_ENDS)
    return dict(zip(("eot", "eom"), ends, strict=False))


def _content(token: Any) -> str | None:
    text: str | None = token.get("content") if isinstance(token, dict) else token
    return text


def _json(path: Path) -> JsonObject:
    if not path.is_file():
        raise ConvertError(
            "a GGUF file holds its tokenizer, and this folder has none",
            got=f"{path} is not there",
            expected="tokenizer.json and tokenizer_config.json",
            remedy="export the run with its tokenizer, or copy its files into the folder",
        )
    return read_json(path)
