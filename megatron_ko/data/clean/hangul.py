"""How Korean a text is, and long runs of single letters (ㅋㅋㅋㅋ, ㅠㅠㅠ)."""

import re

import numpy as np
import numpy.typing as npt
from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, Filter, Rule, StageKind

# Compatibility jamo (ㄱ ㅏ ㆍ), conjoining jamo, their extensions, half-width letters.
_JAMO = ((0x3131, 0x318E), (0x1100, 0x11FF), (0xA960, 0xA97C), (0xD7B0, 0xD7FB), (0xFFA0, 0xFFDC))
_SYLLABLE, _LONE, _OTHER = 1, 2, 3


def _classes() -> npt.NDArray[np.uint8]:
    """The class of every UTF-16 unit: syllable, jamo, other letter, none. Letters of two units are rare."""
    classes = np.fromiter((_OTHER * chr(code).isalpha() for code in range(1 << 16)), np.uint8, 1 << 16)
    classes[0xAC00:0xD7A4] = _SYLLABLE
    for first, last in _JAMO:
        classes[first : last + 1] = _LONE
    return classes


_CLASSES = _classes()


class HangulOptions(Section):
    """Limits; null switches a rule off. No published values exist: find yours with --sample."""

    min_ratio: float | None = Field(0.5, ge=0, le=1, description="Hangul syllables among all letters, at least.")
    max_ratio: float | None = Field(None, ge=0, le=1, description="... and at most, to find mixed text.")
    max_jamo: float | None = Field(0.3, ge=0, le=1, description="Single letters (ㅋ ㅠ ㄱ) among all Hangul, at most.")


class Letters:
    """What the rules measure; if there is nothing to compare it is NaN, which breaks no rule."""

    def __init__(self, page: Page) -> None:
        units = np.frombuffer(page.text.encode("utf-16-le", "surrogatepass"), np.uint16)
        _, self._syllables, self._jamo, self._others = np.bincount(_CLASSES[units], minlength=4).tolist()

    @property
    def ratio(self) -> float:
        """Hangul syllables per letter of any script, single jamo left out; a text without letters is not Korean."""
        letters = self._syllables + self._others
        return self._syllables / letters if letters > 0 else (float("nan") if self._jamo else 0.0)

    @property
    def jamo(self) -> float:
        """Single letters per Hangul character."""
        hangul = self._syllables + self._jamo
        return self._jamo / hangul if hangul else 0.0


def hangul(options: HangulOptions) -> Filter[Letters]:
    """The filter."""
    return Filter(
        Letters,
        [
            Rule("little_hangul", lambda v: v.ratio, low=options.min_ratio),
            Rule("much_hangul", lambda v: v.ratio, high=options.max_ratio),
            Rule("jamo", lambda v: v.jamo, high=options.max_jamo),
        ],
    )


class JamoRunOptions(Section):
    """How long laughing and crying may be."""

    longest: int = Field(3, ge=1, description="A run of the same letter, or of one that goes with it, is cut to this.")


class JamoRuns:
    """Cuts runs of one letter, and of letters that are typed in turn: ㅋㅎㅋㅎ, ㅠㅜㅠㅜ. ㅋㅋ stays as it is."""

    def __init__(self, options: JamoRunOptions) -> None:
        more = options.longest
        self._longest = more
        self._several = re.compile(rf"[ㄱ-ㆎ]{{{more + 1}}}")
        self._runs = re.compile(rf"([ㄱ-ㆎ])\1{{{more},}}|[ㅋㅎ]{{{more + 1},}}|[ㅠㅜ]{{{more + 1},}}")

    def __call__(self, page: Page) -> Changed | None:
        """Cut the runs."""
        if self._several.search(page.text) is None:
            return None
        text, number = self._runs.subn(lambda run: run.group()[: self._longest], page.text)
        return Changed(text, {"jamo_run": number}) if number else None


KIND = StageKind(HangulOptions, hangul)
RUNS = StageKind(JamoRunOptions, JamoRuns)
