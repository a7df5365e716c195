"""How a text speaks to its reader, by its sentence endings: 존댓말 (polite), 반말 (casual), 문어체 (plain, written).

A field for mixing and sampling, never a reason to drop: no threshold is published, and none is needed.
"""

import re
from collections import Counter

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Noted, StageKind
from megatron_ko.data.clean.words import sentences

POLITE, CASUAL, WRITTEN, MIXED, UNKNOWN = "존댓말", "반말", "문어체", "혼합", "없음"

# What may stand behind the last syllable: marks, brackets, emoticons, laughing.
_TAIL = re.compile(r"[^가-힣]+$")
_POLITE = re.compile(
    r"(?:니다|니까|시다|십시오|세요|셔요|예요|에요|여요|해요|[아어워와져려겨켜쳐펴봐줘돼둬춰]요|[네데군지까나가래게걸든라]요|죠|소서)$"
)
_WRITTEN = re.compile(
    # 한다, 했다, 이다; of notes: 했음, 있음, 함, 됨, 임; of essays: 인가, 는가, 하라
    r"(?:다|[았었했였있없같겠됐]음|[함됨임]|[는인한던]가|하라|로다|노라)$"
)
_CASUAL = re.compile(
    r"(?:[아어야해네지냐니자래게걸데든]|잖아|거든|는데|다고|라고|다니|라니|구나|군|ㄴ데|[와워봐줘돼둬춰져려겨켜쳐펴]|셈|삼|듯|까|나)$"
)
_LEVELS = ((POLITE, _POLITE), (WRITTEN, _WRITTEN), (CASUAL, _CASUAL))


class SpeechLevelOptions(Section):
    """When a text has one level."""

    min_share: float = Field(0.6, gt=0.5, le=1, description="Share of the sentences with an ending that must agree.")
    characters: int = Field(10_000, ge=1, description="How much of the text is looked at, from its beginning.")


class SpeechLevel:
    """Notes ``speech_level``: 존댓말, 반말, 문어체, 혼합 (none reaches the share) or 없음 (no ending was found)."""

    def __init__(self, options: SpeechLevelOptions) -> None:
        self._options = options

    def __call__(self, page: Page) -> Noted:
        """Count endings."""
        counts: Counter[str] = Counter()
        for sentence in sentences(page.text[: self._options.characters]):
            if level := sentence_level(sentence):
                counts[level] += 1
        if not counts:
            return Noted({"speech_level": UNKNOWN})
        level, number = counts.most_common(1)[0]
        return Noted({"speech_level": level if number >= self._options.min_share * counts.total() else MIXED})


def sentence_level(sentence: str) -> str | None:
    """The level of one sentence by its last syllables, or None."""
    ending = _TAIL.sub("", sentence[-64:])[-4:]
    return next((level for level, pattern in _LEVELS if pattern.search(ending)), None)


KIND = StageKind(SpeechLevelOptions, SpeechLevel)
