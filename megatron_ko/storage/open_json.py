"""JSON whose content this program does not decide: what users write, and what other programs keep in their files."""

from typing import Any

JsonObject = dict[str, Any]
