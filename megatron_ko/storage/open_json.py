"""JSON whose content this program does not control: files of users and of other programs."""

from typing import Any

JsonObject = dict[str, Any]
