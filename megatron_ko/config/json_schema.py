"""The JSON Schema of run files, for completion and checks in editors."""

from typing import Any

from megatron_ko.config.run import RunConfig


def run_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a run file, with ``extends`` and ``from`` allowed where the loader allows them."""
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    include = {"type": "string", "description": "Another file that this part starts from."}
    schema["properties"]["extends"] = {"anyOf": [include, {"type": "array", "items": include}]}
    # A required value may also come from a parent file.
    schema.pop("required", None)
    for section in schema["$defs"].values():
        section.pop("required", None)
        section["properties"]["from"] = include
    return schema
