"""Drop text that a classifier or a language model finds poor: fastText labels, KenLM perplexity."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.fasttext_model import load_fasttext, probability
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Dropped, Filter, Noted, Rule, StageKind
from megatron_ko.errors import DataError


class QualityOptions(Section):
    """A fastText classifier and what it must find."""

    model: Path = Field(description="fastText model file (supervised).")
    label: str = Field(description="Label of good text, without '__label__'.")
    min_score: float = Field(0.5, ge=0, le=1, description="Least probability of that label.")


class PerplexityOptions(Section):
    """A KenLM language model, and the range of perplexity; a token is an eojeol, or a SentencePiece piece."""

    model: Path = Field(description="KenLM model file: .arpa, or binary.")
    sentencepiece: Path | None = Field(
        None, description="SentencePiece model that the language model was trained with (CCNet); null: white space."
    )
    min: float | None = Field(None, ge=1, description="Least perplexity: below it text repeats itself.")
    max: float | None = Field(None, ge=1, description="Largest perplexity: above it text is no prose of that kind.")


class _Scored(Filter[float]):
    """One value of a page against its limits; what is kept gets the value as a field.

    Args:
        field: name of the field.
        value: of a page.
        rules: about the value.
    """

    def __init__(self, field: str, value: Callable[[Page], float], rules: Sequence[Rule[float]]) -> None:
        super().__init__(value, rules)
        self._field = field

    def __call__(self, page: Page) -> Dropped | Noted:
        """Drop the page for the first limit, or note its value."""
        value = self._view(page)
        for rule in self._rules:
            if rule.broken(value):
                return Dropped(rule.reason)
        return Noted({self._field: round(value, 4)})


def quality(options: QualityOptions) -> _Scored:
    """The stage.

    Raises:
        DataError: no package, no model, or a model without the label.
    """
    model = load_fasttext(options.model, "quality_classifier")
    known = [label.removeprefix("__label__") for label in model.predict("가", k=-1)[0]]
    if options.label not in known:
        raise DataError(
            f"the model {options.model} has no label {options.label!r}",
            got=", ".join(sorted(known)[:20]),
            remedy="label: one of them",
        )
    return _Scored(
        "quality_score",
        lambda page: probability(model, page.text, options.label),
        [Rule("low_quality", float, low=options.min_score)],
    )


def perplexity(options: PerplexityOptions) -> _Scored:
    """The stage.

    Raises:
        DataError: no package, no model, or no limit.
    """
    if options.min is None and options.max is None:
        raise DataError("a perplexity stage without limits", expected="min, max or both", remedy="max: 5000")
    measure = _Perplexity(options)
    rules: list[Rule[float]] = [
        Rule("low_perplexity", float, low=options.min),
        Rule("high_perplexity", float, high=options.max),
    ]
    return _Scored("perplexity", measure, rules)


class _Perplexity:
    """10 ** -(mean log10 probability of a token), over all lines and their ends, as in CCNet (arXiv:1911.00359)."""

    def __init__(self, options: PerplexityOptions) -> None:
        try:
            import kenlm
        except ImportError:
            raise DataError(
                "KenLM is not installed", got="stage perplexity", remedy="pip install kenlm (it needs a C++ compiler)"
            ) from None
        for path in filter(None, (options.model, options.sentencepiece)):
            if not path.is_file():
                raise DataError("the model of stage perplexity does not exist", got=path, remedy="download it")
        try:
            self._model = kenlm.Model(str(options.model))
        except OSError as error:
            raise DataError(
                "no KenLM model", got=f"{options.model}: {error}", remedy="an .arpa or binary file"
            ) from None
        self._pieces = None
        if options.sentencepiece is not None:
            import sentencepiece

            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(options.sentencepiece))

    def __call__(self, page: Page) -> float:
        total, tokens = 0.0, 0
        for line in page.lines:
            words = self._pieces.encode(line, out_type=str) if self._pieces else line.split()
            if words:
                total += self._model.score(" ".join(words))
                tokens += len(words) + 1
        return 10.0 ** min(300.0, -total / tokens) if tokens else math.nan


QUALITY, PERPLEXITY = StageKind(QualityOptions, quality), StageKind(PerplexityOptions, perplexity)
