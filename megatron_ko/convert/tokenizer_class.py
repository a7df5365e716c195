"""Which class of transformers reads a tokenizer.json as it stands.

``tokenizer_class`` is often a name that was left over: GPT2Tokenizer and LlamaTokenizer put their own pre-tokenizer or
normaliser in place of the file's. tokenizer.json decides: where the class that a folder names gives other ids, the
class that adds nothing to the file is taken.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokenizer.check import SUITES
from megatron_ko.data.tokenizer.tokenizer import TOKENIZER_JSON, TRANSFORMERS_CONFIG
from megatron_ko.errors import TokenizerError
from megatron_ko.storage.open_json import JsonObject

AS_IT_STANDS = "PreTrainedTokenizerFast"
_CLASS = "tokenizer_class"
_PROBES = [text for name, suite in SUITES.items() if not name.startswith("every ") for text in suite]


def load_oracle(folder: Path) -> Any:
    """transformers' tokenizer of a folder, in the class that gives the ids of its tokenizer.json."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    return _load(AutoTokenizer if named_class_is_wrong(folder) is None else PreTrainedTokenizerFast, folder)


def named_class_is_wrong(folder: Path) -> str | None:
    """What is wrong with the class that transformers takes for a folder; None: it does what tokenizer.json says."""
    files = [folder / name for name in (TOKENIZER_JSON, TRANSFORMERS_CONFIG, "config.json")]
    stamps = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files)
    return _compare(folder.resolve(), stamps) if stamps[0] else None


@lru_cache(maxsize=16)
def _compare(folder: Path, stamps: tuple[int, ...]) -> str | None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        ours = load_tokenizer(folder).reference_batch(_PROBES)
    except TokenizerError:  # damaged: a gate says how
        return None
    as_it_stands, named = (_load(kind, folder) for kind in (PreTrainedTokenizerFast, AutoTokenizer))
    others = [_ids(one) for one in (as_it_stands, named)]
    if others[1] == ours or others[0] != ours:  # if no class does, the gates say so
        return None
    number = sum(one != other for one, other in zip(ours, others[1], strict=True))
    said = json.loads((folder / TRANSFORMERS_CONFIG).read_text(encoding="utf-8")).get(_CLASS, type(named).__name__)
    return (
        f"{said} gives other ids for {number} of {len(_PROBES)} texts; {AS_IT_STANDS} gives those of {TOKENIZER_JSON}"
    )


def _load(kind: Any, folder: Path) -> Any:
    oracle = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    oracle.model_max_length = 1 << 40  # else it warns of every long text
    return oracle


def _ids(oracle: Any) -> list[list[int]]:
    found: list[list[int]] = oracle(_PROBES, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found


def settle_class(folder: Path) -> None:
    """Name the class that does what tokenizer.json says, also where no config.json is beside it."""
    if named_class_is_wrong(folder) is None:
        return
    path = folder / TRANSFORMERS_CONFIG
    settings: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    settings[_CLASS] = AS_IT_STANDS
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
