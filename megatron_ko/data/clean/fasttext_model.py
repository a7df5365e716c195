"""fastText models that the user has downloaded or trained; only predicting needs a package."""

from pathlib import Path
from typing import Protocol

from megatron_ko.errors import DataError


class FastText(Protocol):
    """A loaded model."""

    def predict(self, text: str, k: int = 1) -> tuple[list[str], list[float]]:
        """The best ``k`` labels (-1: all), with their probabilities."""
        ...


def load_fasttext(path: Path, stage: str) -> FastText:
    """Load a model for a stage.

    Raises:
        DataError: the package or the file is not there, or is no model.
    """
    try:
        import fasttext
    except ImportError:
        raise DataError(
            "fastText is not installed", got=f"stage {stage}", remedy="pip install fasttext-predict"
        ) from None
    if not path.is_file():
        raise DataError(f"the model of stage {stage} does not exist", got=path, remedy="download it; see docs/data.md")
    try:
        model: FastText = fasttext.load_model(str(path))
    except ValueError as error:
        raise DataError("no fastText model", got=f"{path}: {error}", remedy="download it again") from None
    return model


def probability(model: FastText, text: str, label: str) -> float:
    """Of a label, 0 if the model does not know it; the model reads a text as one line."""
    labels, values = model.predict(text.replace("\n", " "), k=-1)
    return min(1.0, float(dict(zip(labels, values, strict=True)).get(f"__label__{label}", 0.0)))
