"""What is beside the weights in a Hugging Face folder: configuration, generation, tokenizer, code."""

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_ko.artifacts.native import Pretrained
from megatron_ko.convert.families import family_of
from megatron_ko.convert.families.base import HfConfig
from megatron_ko.convert.hf_config import to_hf_config
from megatron_ko.convert.tokenizer_class import load_oracle, settle_class
from megatron_ko.errors import ConvertError
from megatron_ko.storage.open_json import JsonObject

GENERATION = "generation_config.json"
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
MORE_TEMPLATES = "additional_chat_templates"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    GENERATION,
    "megatron_ko.json",
)


def write_config(folder: Path, source: Pretrained, dtype: str) -> None:
    """Write config.json and generation_config.json, and copy the tokenizer and the code that the class needs.

    Args:
        folder: to write into.
        source: the native model.
        dtype: of the tensors, as transformers names it.
    """
    if source.tokenizer is not None:
        copy_tokenizer(source.tokenizer, folder)
        bos, eos = begin_and_end(source.tokenizer)
    else:
        copy_generation(source.origin, folder)
        bos, eos = map(read_generation(folder).get, ("bos_token_id", "eos_token_id"))
    for path in family_of(source.model).code:
        shutil.copyfile(path, folder / path.name)
    _write(folder / "config.json", to_hf_config(source.model, dtype=dtype, bos=bos, eos=eos))
    if source.tokenizer is not None:
        settle_class(folder)  # beside config.json transformers may take another class
    generation = read_generation(folder)
    ends = generation.get("eos_token_id")
    if bos is not None:
        generation.setdefault("bos_token_id", bos)
    if (
        source.tokenizer is not None
        and eos is not None
        and eos not in (known := ends if isinstance(ends, list) else [ends])
    ):
        more = [end for end in known if end is not None]  # none of the ends that it names is lost
        generation["eos_token_id"] = [eos, *more] if more else eos
    _write(folder / GENERATION, generation)


def read_json(path: Path, problem: str = "cannot be read") -> JsonObject:
    """A file that holds one JSON object.

    Args:
        path: its place.
        problem: what an error says about it.

    Raises:
        ConvertError: it holds something else, or is not there.
    """
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise ConvertError(
            f"{path.name} {problem}", got=f"{path}: {error}", expected="a JSON object, in a Hugging Face folder"
        ) from None


def read_generation(folder: Path) -> JsonObject:
    """What generation_config.json says; nothing where there is none.

    Raises:
        ConvertError: it is damaged.
    """
    path = folder / GENERATION
    return read_json(path, "is damaged") if path.is_file() else {}


def carry_generation(fields: HfConfig, target: Path) -> None:
    """Add the ids that generation begins and ends with to a tokenizer's folder, where only config.json names them."""
    found = read_generation(target)
    said = {name: fields[name] for name in SPECIAL if fields.get(name) is not None and found.get(name) is None}
    if said:
        _write(target / GENERATION, {**found, **said})


def copy_generation(source: Path, target: Path) -> None:
    """Copy generation_config.json from one folder into another, where it is there."""
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, target / GENERATION)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer from one folder into another, those that are there."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / MORE_TEMPLATES).is_dir():
        shutil.copytree(source / MORE_TEMPLATES, target / MORE_TEMPLATES)


def begin_and_end(tokenizer: Path) -> tuple[int | None, int | None]:
    """Ids that generation begins and ends with: with a chat template the end of a turn, otherwise of a document."""
    oracle = load_oracle(tokenizer)
    end = end_of_turn(oracle)
    return oracle.bos_token_id, oracle.eos_token_id if end is None else end


def end_of_turn(oracle: Any) -> int | None:
    """The special token that the chat template puts after an answer; None where there is no template or no such token.

    Args:
        oracle: transformers' tokenizer.
    """
    if not oracle.chat_template:
        return None
    answer = "대답"
    chat = [{"role": "user", "content": "질문"}, {"role": "assistant", "content": answer}]
    _, found, after = oracle.apply_chat_template(chat, tokenize=False).rpartition(answer)
    ids = oracle(after, add_special_tokens=False)["input_ids"] if found else []
    special = set(oracle.all_special_ids) | {
        number for number, token in oracle.added_tokens_decoder.items() if token.special
    }
    return next((number for number in ids if number in special), None)


def _write(path: Path, content: JsonObject) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
