"""The metric store's quantities: declared once, documented, and nothing else is written."""

from pathlib import Path

import pytest

from megatron_ko.metrics.schema import TRAIN, VALID, Schema

DOCS = Path(__file__).parents[2] / "docs/train.md"


@pytest.mark.parametrize("schema", [TRAIN, VALID])
def test_every_quantity_is_documented_and_none_twice(schema: Schema) -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in schema.names() if f"`{name}`" not in text] == []
    assert len(set(schema.names())) == len(schema.names())


def test_a_key_that_is_not_declared_is_refused() -> None:
    TRAIN.check(["step", "loss", "tokens/wiki"])
    with pytest.raises(AssertionError, match=r"not in metrics/schema.py: \['los'\]"):
        TRAIN.check(["step", "los"])


def test_curves_are_numbers_without_marks() -> None:
    record = {"step": 3, "time": 1.0, "loss": 2.5, "loss_hex": "0x1", "mfu": None, "tokens/wiki": 7, "attention": "x"}
    assert dict(TRAIN.curves(record)) == {"loss": 2.5, "tokens/wiki": 7}
    assert "loss" in TRAIN.columns() and "loss_hex" not in TRAIN.columns() and "step" in TRAIN.columns()
