"""Datasets of the Hugging Face hub as files: hf:OWNER/NAME[@REVISION][:[CONFIG:]SPLIT].

The files are downloaded into the cache of huggingface_hub, under the commit that the revision stands for, and read
from there like any others. The card of the dataset (``configs``) says which files belong to a split; without it their
names do, as in the package `datasets`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ko.data.text.streams import without_compression
from megatron_ko.errors import DataError
from megatron_ko.storage.open_json import JsonObject

PREFIX = "hf:"
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True)
class HubName:
    """What hf:OWNER/NAME@REVISION:CONFIG:SPLIT names; None where the name leaves it open."""

    repository: str
    revision: str | None
    config: str | None
    split: str

    @classmethod
    def parsed(cls, text: str) -> "HubName":
        """From the text after "hf:".

        Raises:
            DataError: too many parts, or an empty one.
        """
        place, *rest = text.split(":")
        repository, _, revision = place.partition("@")
        if len(rest) > 2 or not all((repository, *rest)):
            raise DataError(
                f"no name of a hub dataset: {PREFIX}{text}",
                expected="hf:OWNER/NAME, and behind it @REVISION, :SPLIT or :CONFIG:SPLIT",
                remedy="check --input",
            )
        return cls(repository, revision or None, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train")


def hub_files(text: str, kinds: Mapping[str, object]) -> list[Path]:
    """Download the files of a split.

    Args:
        text: what follows "hf:".
        kinds: suffixes that can be read; .gz and .zst may follow.

    Raises:
        DataError: no such dataset, revision, configuration or split, no network, or files of several kinds.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError

    name = HubName.parsed(text)
    try:
        found = HfApi().dataset_info(name.repository, revision=name.revision)
        files = sorted(file.rfilename for file in found.siblings or ())
        readable = [file for file in files if _kind(file) in kinds and not re.search(r"(^|/)[._]", file)]
        chosen = _of_split(name, readable, getattr(found.card_data, "configs", None) or [])
        return [
            Path(hf_hub_download(name.repository, file, repo_type="dataset", revision=found.sha)) for file in chosen
        ]
    except (OSError, ValueError, HTTPError) as error:
        raise DataError(
            f"hub dataset {name.repository} was not fetched",
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}",
            expected="a dataset at this name and revision, and a network",
            remedy="check them; for a private or gated one: hf auth login; where there is no network: "
            f"hf download --repo-type dataset {name.repository} --local-dir DIR elsewhere, and --input DIR",
        ) from error


def _of_split(name: HubName, files: Sequence[str], configs: Sequence[JsonObject]) -> list[str]:
    """The files of the split, of one kind."""
    splits = _by_card(name, files, configs) if configs else _by_name(files)
    if name.config is not None and not configs:
        raise _missing(name, "configuration", name.config, [])
    if not (chosen := splits.get(name.split)):
        raise _missing(name, "split", name.split, [split for split, held in splits.items() if held])
    if len(found := {_kind(file) for file in chosen}) > 1:
        raise DataError(
            f"the split {name.split} of hub dataset {name.repository} has files of several kinds",
            got=", ".join(sorted(found)),
            expected="one kind: the same text may be there in each",
            remedy="download it, and give the files that are meant",
        )
    return chosen


def _by_card(name: HubName, files: Sequence[str], configs: Sequence[JsonObject]) -> dict[str, list[str]]:
    """Files by split, as the card declares them for one configuration."""
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    wanted = name.config or next((key for key, config in by_name.items() if config.get("default")), None)
    wanted = wanted or ("default" if "default" in by_name or len(by_name) > 1 else next(iter(by_name)))
    if wanted not in by_name:
        raise _missing(name, "configuration", name.config or "none named", list(by_name))
    config = by_name[wanted]
    folder = f"{str(config.get('data_dir') or '').strip('/')}/".removeprefix("/").removeprefix("./")
    if not (listed := config.get("data_files")):
        return _by_name([file for file in files if file.startswith(folder)])
    if not isinstance(listed, list) or not isinstance(listed[0], dict):
        listed = [{"split": "train", "path": listed}]
    splits: dict[str, list[str]] = {}
    for entry in listed:
        paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        pattern = re.compile("|".join(_as_expression(folder + path.removeprefix("./")) for path in paths))
        splits[str(entry["split"])] = [file for file in files if pattern.fullmatch(file)]
    return splits


def _by_name(files: Sequence[str]) -> dict[str, list[str]]:
    """Files by split: a word in the name of a file, or of its folders, says which; all are "train" if none does."""
    splits: dict[str, list[str]] = {}
    for file in files:
        words = (word for part in reversed(file.split("/")) for word in re.split(r"[^a-z]+", part.lower()))
        if split := next((_SPLITS[word] for word in words if word in _SPLITS), None):
            splits.setdefault(split, []).append(file)
    return splits or {"train": list(files)}


def _as_expression(pattern: str) -> str:
    """A pattern of a card, in which * stays within a folder and ** does not, as a regular expression."""
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meanings.get(piece) or (piece if piece.startswith("[") else re.escape(piece))
        for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|.", pattern)
    )


def _kind(file: str) -> str:
    return without_compression(Path(file)).suffix


def _missing(name: HubName, what: str, got: str, known: Sequence[str]) -> DataError:
    return DataError(
        f"hub dataset {name.repository} has no such {what}",
        got=got,
        expected=f"one of: {', '.join(known)}" if known else "files that can be read: parquet, JSON lines, csv, text",
        remedy=f"--input {PREFIX}{name.repository}:"
        + (f"{known[0] if known else 'CONFIG'}:{name.split}" if what == "configuration" else "SPLIT"),
    )
