"""Pipeline files: everything wrong is told at once with its place, and the presets are what they claim to be."""

from pathlib import Path

import pytest

from megatron_ko.data.clean.config import load_clean_config
from megatron_ko.data.clean.gopher import GopherOptions
from megatron_ko.data.clean.pipeline import Pipeline
from megatron_ko.data.clean.registry import STAGES
from megatron_ko.errors import ConfigError, DataError

PRESETS = Path(__file__).parents[2] / "configs/clean"


def write(folder: Path, text: str) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
word: kiwi
words: morphemes
stages:
  - unicod
  - hangul: {min_ration: 0.5}
  - hangul: {min_ratio: 2}
  - length: 5
  - {html: {}, c4: {}}
  - language
""",
    )
    with pytest.raises(ConfigError) as caught:
        load_clean_config(path)
    message = str(caught.value)
    for expected in (
        "8 problems",
        "did you mean 'words'?",
        "eojeol or kiwi",
        "did you mean 'unicode'?",
        "stages.1.hangul.min_ration",
        "did you mean 'min_ratio'?",
        "stages.2.hangul.min_ratio",
        "stages.3.length",
        "stages.4",
        "stages.5.language.model",
    ):
        assert expected in message, f"{expected} is not in\n{message}"


@pytest.mark.parametrize("text", ["words: eojeol", "stages: []", "stages: unicode"])
def test_a_pipeline_needs_stages(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="a list of stages"):
        load_clean_config(write(tmp_path, text))


def test_files_are_found_beside_the_pipeline_and_are_part_of_its_identity(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("토토\n", encoding="utf-8")
    path = write(tmp_path, "stages: [{blocklist: {file: words.txt}}, {blocklist: {phrases: [가]}}]")
    config = load_clean_config(path)
    assert [stage.name for stage in config.stages] == ["blocklist", "blocklist.2"]
    before = config.described()
    (tmp_path / "words.txt").write_text("카지노\n", encoding="utf-8")
    assert load_clean_config(path).described() != before


def test_a_pipeline_can_extend_another(tmp_path: Path) -> None:
    write(tmp_path, "words: eojeol\nstages: [unicode]")
    child = tmp_path / "child.yaml"
    child.write_text("extends: pipeline.yaml\nstages: [html]", encoding="utf-8")
    assert [stage.kind for stage in load_clean_config(child).stages] == ["html"]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_load(path: Path) -> None:
    config = load_clean_config(path)
    assert config.stages
    if config.words == "eojeol":
        Pipeline(config)


def test_the_preset_of_fineweb2_has_the_published_values() -> None:
    """https://github.com/huggingface/fineweb-2/blob/main/configs/kor_Hang.yml and fineweb-2-pipeline.py."""
    config = load_clean_config(PRESETS / "fineweb2-kor.yaml")
    stages = {stage.kind: stage.options for stage in config.stages}
    repetition, fineweb, gopher = stages["gopher_repetition"], stages["fineweb"], stages["gopher"]
    assert config.words == "kiwi"
    assert repetition.duplicate_lines == 0.374
    assert repetition.duplicate_paragraphs is repetition.duplicate_paragraph_characters is None
    assert repetition.duplicate_line_characters is None
    assert repetition.top_ngrams == {2: 0.282, 3: 0.228, 4: 0.185}
    assert repetition.duplicate_ngrams == {5: 0.201, 6: 0.184, 7: 0.168, 8: 0.154, 9: 0.14, 10: 0.127}
    assert (fineweb.min_punctuated_lines, fineweb.max_line_breaks) == (0.062, 0.196)
    assert (fineweb.max_duplicate_characters, fineweb.max_short_lines) == (0.1, None)
    assert (gopher.min_average_word, gopher.max_average_word, gopher.min_alphabetic_words) == (1, 6, 0.791)
    assert (gopher.min_stop_words, len(gopher.stop_words), gopher.stop_words_as) == (2, 21, "words")
    assert gopher.stop_words[:6] == ("의", "다", "이", "는", "에", "을")
    defaults = GopherOptions()
    for same in ("min_words", "max_words", "max_hashes", "max_ellipses", "max_bullet_lines", "max_ellipsis_lines"):
        assert getattr(gopher, same) == getattr(defaults, same)


def test_every_stage_can_be_built_by_its_name(tmp_path: Path) -> None:
    needs = {
        "blocklist": "{phrases: [가]}",
        "language": "{model: absent.bin}",
        "urls": "{words: [가]}",
        "quality_classifier": "{model: absent.bin, label: good}",
        "perplexity": "{model: absent.arpa, max: 10}",
    }
    for name in STAGES:
        config = load_clean_config(write(tmp_path, f"stages: [{{{name}: {needs.get(name, '{}')}}}]"))
        if "absent" not in needs.get(name, ""):
            Pipeline(config)


def test_a_missing_language_model_is_told(tmp_path: Path) -> None:
    config = load_clean_config(write(tmp_path, "stages: [{language: {model: absent.bin}}]"))
    with pytest.raises(DataError, match="does not exist"):
        Pipeline(config)
