"""Language identification with a fastText model (GlotLID, lid.176) that the user has downloaded."""

from pathlib import Path

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.fasttext_model import load_fasttext
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Dropped, Noted, StageKind


class LanguageOptions(Section):
    """Which language is kept."""

    model: Path = Field(description="fastText model file, for example GlotLID's model_v3.bin or lid.176.bin.")
    labels: tuple[str, ...] = Field(
        ("kor_Hang", "ko"), min_length=1, description="Labels to keep, without '__label__': of GlotLID, of lid.176."
    )
    min_score: float = Field(
        0.842, ge=0, le=1, description="Least score of the best label; FineWeb-2: 0.842 (GlotLID)."
    )


class Language:
    """Drops other languages and unsure texts; notes ``language`` and ``language_score``."""

    def __init__(self, options: LanguageOptions) -> None:
        self._options = options
        self._model = load_fasttext(options.model, "language")

    def __call__(self, page: Page) -> Dropped | Noted:
        """Ask the model, which reads a text as one line."""
        labels, scores = self._model.predict(page.text.replace("\n", " "), k=1)
        label = labels[0].removeprefix("__label__") if len(labels) else "none"
        score = min(1.0, float(scores[0])) if len(labels) else 0.0
        if label not in self._options.labels:
            return Dropped("other_language")
        if score < self._options.min_score:
            return Dropped("unsure_language")
        return Noted({"language": label, "language_score": round(score, 4)})


KIND = StageKind(LanguageOptions, Language)
