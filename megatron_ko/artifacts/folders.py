"""Quick checks of a folder's content, before torch and transformers are imported."""

import re
from pathlib import Path

from megatron_ko.artifacts.native import expect_model
from megatron_ko.errors import ConvertError

CONFIG = "config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def expect_hugging_face(folder: Path) -> None:
    """Refuse a path that is not a Hugging Face folder.

    Raises:
        ConvertError: there is no such folder, or no config.json in it.
    """
    if (folder / CONFIG).is_file():
        return
    if not folder.exists() and _HUB_ID.fullmatch(str(folder)):
        raise ConvertError(
            "there is no such folder, and models are not downloaded from the hub",
            got=folder,
            expected="a folder with config.json and safetensors",
            remedy=f"hf download {folder} --local-dir {folder.name}",
        )
    raise ConvertError(
        "config.json cannot be read",
        got=f"{folder} does not have one" if folder.is_dir() else f"{folder} is not a folder",
        expected="a folder with config.json and safetensors",
        remedy="give a folder that transformers can load",
    )


def expect_either(folder: Path) -> None:
    """Refuse a path that is neither a Hugging Face folder nor a native model or run.

    Raises:
        ConvertError, CheckpointError: it is neither.
    """
    if not (folder / CONFIG).is_file():
        expect_model(folder)
