"""Language identification with a real fastText model.

data/two_languages.bin was trained with fastText 0.9.2 on random lines of the 300 most frequent words of the demo corpus
(kor_Hang) and of this project's English pages (eng_Latn): dim 4, n-grams of 1 and 2 letters, 300 buckets, 10 epochs.
"""

from pathlib import Path

import pytest

from megatron_ko.data.clean.language import Language, LanguageOptions
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Dropped, Noted
from megatron_ko.errors import DataError

MODEL = Path(__file__).parent / "data/two_languages.bin"
KOREAN, ENGLISH = "오늘은 날씨가 좋아서\n사람들이 공원에 나왔다.", "The corpus is read once and the tokens are written"


def test_only_the_language_is_kept() -> None:
    stage = Language(LanguageOptions(model=MODEL, min_score=0.9))
    kept = stage(Page(KOREAN))
    assert isinstance(kept, Noted)
    assert kept.fields["language"] == "kor_Hang" and 0.9 <= float(str(kept.fields["language_score"])) <= 1
    assert stage(Page(ENGLISH)) == Dropped("other_language")
    assert isinstance(Language(LanguageOptions(model=MODEL, labels=("eng_Latn",)))(Page(ENGLISH)), Noted)


def test_an_unsure_text_is_dropped() -> None:
    mixed = KOREAN + " " + ENGLISH
    verdicts = [Language(LanguageOptions(model=MODEL, labels=("kor_Hang", "eng_Latn"), min_score=1.0))(Page(mixed))]
    assert verdicts == [Dropped("unsure_language")]


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(DataError, match="no fastText model"):
        Language(LanguageOptions(model=tmp_path / "model.bin"))
    with pytest.raises(DataError, match="does not exist"):
        Language(LanguageOptions(model=tmp_path / "absent.bin"))
