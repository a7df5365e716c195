"""The gate as a verb, on folders of any origin, each way to be broken; and the comparison against counting by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers
from typer.testing import CliRunner

from megatron_ko.cli.tokenizer import app
from megatron_ko.data.tokenizer import Tokenizer, check, load_tokenizer
from megatron_ko.data.tokenizer.check import SUITES, check_folder
from megatron_ko.data.tokenizer.compare import compare_tokenizers, comparison_table
from megatron_ko.data.tokenizer.pieces import Spelling

pytest.importorskip("transformers")
Folder = Callable[[str], Path]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all syllables and characters every fiftieth: what is found in these is found in all."""
    suites = {name: suite[::50] if len(suite) > 1000 else suite for name, suite in SUITES.items()}
    monkeypatch.setattr(check, "SUITES", suites)
    monkeypatch.setattr(check, "_EVERY", check._EVERY[::50])


def _failed(folder: Path) -> dict[str, str]:
    return {result.name: result.example for result in check_folder(folder) if not result.ok}


def _changed(source: Path, target: Path, change: Callable[[Backend], None]) -> Path:
    """A plain Hugging Face copy of a folder, with one thing changed."""
    target.mkdir()
    shutil.copyfile(source / "tokenizer_config.json", target / "tokenizer_config.json")
    tokenizer = Backend.from_file(str(source / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(target / "tokenizer.json"))
    return target


@pytest.mark.parametrize("model", ["unigram", "bpe", "byte-bpe"])
def test_what_is_trained_here_passes(tokenizer_folder: Folder, model: str, korean: Callable[..., list[str]]) -> None:
    results = check_folder(tokenizer_folder(model), korean(50, 2))
    assert not [result for result in results if not result.ok]
    tried = {result.name: result.tried for result in results}
    assert tried["round trip: every syllable alone"] == 11_172
    assert tried["every byte has a token"] == 256
    assert tried["round trip: your documents"] == 50


def test_the_suite_holds_what_it_says() -> None:
    assert any("\u200d" in text for text in SUITES["emoji"])
    assert any("\u1112\u1161\u11ab" in text for text in SUITES["decomposed (NFD)"])
    assert any("\t\t" in text for text in SUITES["code"]) and any("\u3131" in text for text in SUITES["jamo"])


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD"])
def test_normalisation_is_found(tokenizer_folder: Folder, tmp_path: Path, form: str) -> None:
    def change(tokenizer: Backend) -> None:
        tokenizer.normalizer = getattr(normalizers, form)()

    failed = _failed(_changed(tokenizer_folder("byte-bpe"), tmp_path / "tok", change))
    assert "no normalisation" in failed
    assert ("round trip: every syllable alone" in failed) == (form == "NFD")


@pytest.mark.usefixtures("few")
def test_a_prefix_space_and_a_swallowed_line_break_are_found(tokenizer_folder: Folder, tmp_path: Path) -> None:
    def prefix(tokenizer: Backend) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    def swallow(tokenizer: Backend) -> None:
        tokenizer.normalizer = normalizers.Replace("\n", " ")

    assert "no normalisation" in _failed(_changed(tokenizer_folder("byte-bpe"), tmp_path / "a", prefix))
    failed = _failed(_changed(tokenizer_folder("byte-bpe"), tmp_path / "b", swallow))
    assert {"round trip: line breaks and tabs", "round trip: code"} <= failed.keys()


@pytest.mark.usefixtures("few")
def test_unknown_tokens_missing_bytes_and_wrong_specials_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    vocabulary = {"<unk>": 0, "</s>": 1, "가": 2, "a": 3}
    Backend(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("<|user|>{{ messages }}<|end|>")
    failed = _failed(folder)
    assert {"no unknown tokens", "every byte has a token", "special tokens are single ids"} <= failed.keys()
    assert "'<|end|>'" in failed["chat borders are single ids"]


@pytest.mark.usefixtures("few")
def test_transformers_that_builds_another_tokenizer_is_found(tokenizer_folder: Folder, tmp_path: Path) -> None:
    """GPT2Tokenizer of transformers 5 takes vocabulary and merges, and its own pre-tokenizer."""
    folder = _changed(tokenizer_folder("byte-bpe"), tmp_path / "tok", lambda tokenizer: None)
    assert not _failed(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "NoSuchTokenizer"}))
    got = _failed(folder)
    assert not got or "transformers gives the same ids" in got
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<pad>"}))
    record = json.loads((tokenizer_folder("byte-bpe") / "megatron_ko.json").read_text())
    (folder / "megatron_ko.json").write_text(json.dumps(record))
    assert "was changed" in _failed(folder)["the folder loads"]


@pytest.mark.usefixtures("few")
def test_the_verb_ends_with_2_and_names_what_failed(tokenizer_folder: Folder, tmp_path: Path) -> None:
    good = CliRunner().invoke(app, ["check", str(tokenizer_folder("byte-bpe"))])
    assert good.exit_code == 0 and "every check passed" in good.output
    missing = CliRunner().invoke(app, ["check", str(tmp_path / "none"), "--json"])
    assert missing.exit_code == 2 and json.loads(missing.stdout)["ok"] is False

    def change(tokenizer: Backend) -> None:
        tokenizer.normalizer = normalizers.NFKC()

    bad = CliRunner().invoke(app, ["check", str(_changed(tokenizer_folder("bpe"), tmp_path / "bad", change))])
    assert bad.exit_code == 2 and "FAILED  no normalisation" in bad.output


@pytest.mark.parametrize("model", ["unigram", "bpe", "byte-bpe"])
def test_figures_are_those_that_counting_gives(
    tokenizer_folder: Folder, korean: Callable[..., list[str]], model: str
) -> None:
    texts = [*korean(60, 4), "뷁 쀍 大韓 \U0001f642", "\n\n", "탭\t글"]
    tokenizer = load_tokenizer(tokenizer_folder(model))
    comparison = compare_tokenizers([tokenizer.folder], {"one": texts[:60], "two": texts[60:]})
    for name, part in (("one", texts[:60]), ("two", texts[60:])):
        alone = compare_tokenizers([tokenizer.folder], {name: part})
        assert comparison.sources[name] == alone and not alone.sources
    rows = [line.split(" | ")[:2] for line in comparison_table(comparison)[2:]]
    assert rows == [[f"| {model}", name] for name in ("one", "two", "all")]
    fit = comparison.fits[0]
    ids = [tokenizer.encode(text) for text in texts]
    tokens = sum(map(len, ids))
    assert (fit.tokens, fit.exact, fit.unknown_share) == (tokens, True, 0.0)
    assert fit.tokens_per_eojeol == pytest.approx(tokens / sum(len(text.split()) for text in texts), abs=1e-4)
    assert fit.tokens_per_character == pytest.approx(tokens / sum(map(len, texts)), abs=1e-4)
    assert fit.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in texts) / tokens, abs=1e-4)
    assert fit.coverage == pytest.approx(_share_in_whole_pieces(tokenizer, texts), abs=1e-4)
    assert 0 < fit.coverage < 1 and 0 < fit.byte_share < 1


def _share_in_whole_pieces(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Character by character: whether its first and its last byte lie in one token, which is no single byte."""
    spelling = Spelling(json.loads((tokenizer.folder / "tokenizer.json").read_text(encoding="utf-8")))
    pieces = {number: piece for piece, number in tokenizer.vocabulary().items()}
    whole = visible = 0
    for text in texts:
        owners = []
        for index, number in enumerate(tokenizer.encode(text)):
            spelt = spelling.bytes_of(pieces[number])
            owners += [-1 if spelling.byte_piece(pieces[number]) else index] * len(spelt)
        place = 0
        for character in text:
            size = len(character.encode("utf-8"))
            if not character.isspace():
                visible += 1
                whole += owners[place] == owners[place + size - 1] != -1
            place += size
        assert place == len(owners)
    return whole / visible


def test_the_comparison_prints_a_table_and_draws(
    tokenizer_folder: Folder, korean: Callable[..., list[str]], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(part.replace("\n", " ") for part in korean(100, 4)), encoding="utf-8")
    folders = [str(tokenizer_folder(model)) for model in ("unigram", "byte-bpe")]
    plot = tmp_path / "plot.png"
    result = CliRunner().invoke(app, ["compare", *folders, "--input", str(text), "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("| tokenizer |") and lines[2].startswith("| unigram | 640 |")
    assert plot.read_bytes().startswith(b"\x89PNG")
    as_json = CliRunner().invoke(app, ["compare", *folders, "--input", str(text), "--json"])
    fits = json.loads(as_json.stdout)["fits"]
    assert [fit["name"] for fit in fits] == ["unigram", "byte-bpe"] and all(fit["exact"] for fit in fits)
