"""What a folder holds, seen at once: before torch and transformers are imported for it."""

import re
from pathlib import Path

from megatron_ko.artifacts.native import expect_model
from megatron_ko.errors import ConvertError

CONFIG = "config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def expect_hugging_face(folder: Path) -> None:
    """Refuse what is no folder of transformers.

    Raises:
        ConvertError: there is no such folder, or no config.json in it.
    """
    if (folder / CONFIG).is_file():
        return
    if not folder.exists() and _HUB_ID.fullmatch(str(folder)):
        raise ConvertError(
            "there is no such folder, and models of the hub are not downloaded here",
            got=folder,
            expected="a folder with config.json and safetensors",
            remedy=f"hf download {folder} --local-dir {folder.name}",
        )
    raise ConvertError(
        "config.json cannot be read",
        got=f"{folder} has none" if folder.is_dir() else f"{folder} is no folder",
        expected="a folder with config.json and safetensors",
        remedy="name the folder that transformers loads",
    )


def expect_either(folder: Path) -> None:
    """Refuse what is neither a folder of transformers nor a native model or run.

    Raises:
        ConvertError, CheckpointError: it is none of them.
    """
    if not (folder / CONFIG).is_file():
        expect_model(folder)
