"""Extending: old ids stay, text without Hangul is untouched, new ids stand for old ones, and transformers agrees."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from megatron_ko.cli.tokenizer import app
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokenizer.extend import NEW_IDS, ExtendOptions, extend_tokenizer
from megatron_ko.data.tokenizer.gates import NASTY
from megatron_ko.data.tokenizer.grow import grow
from megatron_ko.data.tokenizer.pieces import may_be_added, proves_hangul
from megatron_ko.data.tokenizer.proof import in_old_ids
from megatron_ko.errors import TokenizerError

Korean = Callable[..., list[str]]
NEW = 150
ROOT = Path(__file__).parents[2]
# English prose and code: what a tokenizer without Korean was trained on.
ENGLISH = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "megatron_ko/data/text").glob("*.py"))]
CODE = 'def add(a, b):\n    """Sum."""\n\tif a > 10:\n        return a + b  # 12345\n\n\n'
HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")
RELAXED = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = [
    "학교",
    "에서",
    " 간다",
    "ㅋㅋ",
    "힣",
    "뷁",
    "12",
    "AI는",
    " ",
    "\n",
    "\u2581",
    "ㄱ",
    "café",
    "日本",
    "語学",
    "é",
    "한",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=40).map("".join)


def _save(folder: Path, tokenizer: Tokenizer, eos: str, tokenizer_class: str) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "eos_token": eos, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    return folder


def _byte_level(folder: Path, texts: list[str], late: bool) -> Path:
    """As SmolLM2: digits apart, byte-level BPE. ``late``: as Qwen2, special tokens lie behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = [] if late else special
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=first, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _save(folder, tokenizer, "<|endoftext|>", "PreTrainedTokenizerFast" if late else "GPT2Tokenizer")


def _llama(folder: Path, texts: list[str]) -> Path:
    """As Llama 2: SentencePiece BPE, U+2581 for a space, bytes for what has no piece, nothing cut beforehand."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    trained.train_from_iterator((re.sub("[^\x20-\x7e]", "", text) for text in texts), trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special[:3]])
    return _save(folder, tokenizer, "</s>", "PreTrainedTokenizerFast")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, korean: Korean) -> Path:
    path = tmp_path_factory.mktemp("extend") / "corpus.jsonl"
    lines = (json.dumps({"text": text + " 그리고 AI는 12개ㅋㅋㅋ"}, ensure_ascii=False) for text in korean(1500, 3))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bases(
    tmp_path_factory: pytest.TempPathFactory, korean: Korean, tokenizer_folder: Callable[[str], Path]
) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bases")

    def base(name: str) -> Path:
        path = folder / name
        if name in ("unigram", "bpe", "byte-bpe"):
            return tokenizer_folder(name)
        if path.exists():
            return path
        if name == "llama":
            return _llama(path, ENGLISH)
        # Pieces of a few Korean bytes too, as tokenizers of other languages have them.
        texts = [*ENGLISH, *(korean(30, 9) if name == "some-korean" else [])]
        return _byte_level(path, texts, late=name == "late-specials")

    return base


@pytest.fixture(scope="session", params=["smollm2", "late-specials", "some-korean", "byte-bpe", "bpe", "llama"])
def pair(
    request: pytest.FixtureRequest, bases: Callable[[str], Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    base = bases(request.param)
    output = tmp_path_factory.mktemp("extended") / request.param
    new = 60 if request.param in ("bpe", "byte-bpe") else NEW  # they know most of this Korean already
    report = extend_tokenizer(base, [corpus], output, ExtendOptions(new_ids=new))
    assert report.vocab_size == report.base_vocab_size + new
    assert report.tokens_after < report.tokens_before
    return base, output


loaded = cache(load_tokenizer)  # not for each of many examples anew


@cache
def _parts(folder: Path) -> dict[int, list[int]]:
    lines = [json.loads(line) for line in (folder / NEW_IDS).read_text(encoding="utf-8").splitlines()]
    return {line["id"]: line["old_ids"] for line in lines}


@RELAXED
@given(text=TEXT)
def test_any_text_is_the_old_ids_with_some_of_them_joined(pair: tuple[Path, Path], text: str) -> None:
    old, new = map(loaded, pair)
    ids = new.encode(text)
    assert in_old_ids(ids, _parts(pair[1])) == old.encode(text)
    assert new.decode(ids) == old.decode(old.encode(text))
    if not HANGUL.search(text):
        assert ids == old.encode(text)


def test_english_and_code_keep_their_ids(pair: tuple[Path, Path]) -> None:
    old, new = map(load_tokenizer, pair)
    for text in [*ENGLISH, CODE, *NASTY]:
        if not HANGUL.search(text):
            assert new.encode(text) == old.encode(text)


def test_every_old_id_stays_and_every_new_one_is_reached(pair: tuple[Path, Path]) -> None:
    old, new = map(load_tokenizer, pair)
    before, after = old.vocabulary(), new.vocabulary()
    assert all(after[piece] == number for piece, number in before.items())
    added = sorted(number for piece, number in after.items() if piece not in before)
    assert added == list(range(old.vocab_size, new.vocab_size))
    assert all(new.pieces_of_word(piece) == [after[piece]] for piece in after.keys() - before.keys())
    parts = _parts(pair[1])
    assert sorted(parts) == added
    assert all(len(ids) > 1 and max(ids) < old.vocab_size for ids in parts.values())


def test_transformers_gives_the_same_ids_token_by_token(pair: tuple[Path, Path], korean: Korean) -> None:
    transformers = pytest.importorskip("transformers")
    new, oracle = load_tokenizer(pair[1]), transformers.AutoTokenizer.from_pretrained(pair[1])
    assert len(oracle) == new.vocab_size
    # GPT2Tokenizer of transformers 5 would forget that digits, and ½, stand apart.
    for text in [*NASTY, *korean(100, 11), CODE, "ﬁ ½ ℃ Ⅷ 12345"]:
        ids = new.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert oracle.decode(ids) == new.decode(ids)


def test_the_record_names_the_base_and_the_rows(pair: tuple[Path, Path]) -> None:
    old, new = map(load_tokenizer, pair)
    record = json.loads((pair[1] / "megatron_ko.json").read_text(encoding="utf-8"))
    assert record["base"]["fingerprint"] == old.fingerprint and record["fingerprint"] == new.fingerprint
    assert record["new_ids"] == [old.vocab_size, new.vocab_size]
    assert record["embedding"]["file"] == NEW_IDS
    if (pair[0] / "chat_template.jinja").exists():
        assert (pair[1] / "chat_template.jinja").read_text() == "{{ messages }}"


def test_extending_is_deterministic_and_can_be_repeated(
    bases: Callable[[str], Path], corpus: Path, tmp_path: Path
) -> None:
    first, second = (
        extend_tokenizer(bases("smollm2"), [corpus], tmp_path / name, ExtendOptions(new_ids=40)) for name in "ab"
    )
    assert first.fingerprint == second.fingerprint
    again = extend_tokenizer(tmp_path / "a", [corpus], tmp_path / "c", ExtendOptions(new_ids=20))
    assert again.vocab_size == first.vocab_size + 20
    old, new = load_tokenizer(tmp_path / "a"), load_tokenizer(tmp_path / "c")
    assert in_old_ids(new.encode("학교에서 간다 ㅋㅋ"), _parts(tmp_path / "c")) == old.encode("학교에서 간다 ㅋㅋ")


def test_refusals_write_nothing(bases: Callable[[str], Path], corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="too few Korean pieces") as error:
        extend_tokenizer(bases("smollm2"), [corpus], tmp_path / "tok", ExtendOptions(new_ids=100_000))
    assert "at most" in str(error.value)
    with pytest.raises(TokenizerError, match="cannot be extended"):
        extend_tokenizer(bases("unigram"), [corpus], tmp_path / "tok", ExtendOptions(new_ids=10))
    assert not (tmp_path / "tok").exists()


def test_no_unigram_piece_can_be_added_without_changing_its_neighbours() -> None:
    """Why such a base is refused: with 가나, what stands before it is cut elsewhere."""
    scores = [("<unk>", -9.0), ("a", -2.0), ("b", -6.0), ("ab", -3.0), ("b가", -2.0), ("가", -4.0), ("나", -4.0)]
    before, after = (Tokenizer(models.Unigram(pieces, unk_id=0)) for pieces in (scores, [*scores, ("가나", -2.0)]))
    assert before.encode("ab가나").tokens == ["a", "b가", "나"]
    assert after.encode("ab가나").tokens == ["ab", "가나"]
    assert before.encode("가나").tokens == ["가", "나"]  # 가나 in old pieces: ab 가 나 is not a b가 나


def test_the_command_says_what_was_added(bases: Callable[[str], Path], corpus: Path, tmp_path: Path) -> None:
    words = ["extend", "--base", str(bases("smollm2")), "--input", str(corpus), "--vocab-size", "50", "--tensor", "8"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "tok"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["vocab_size"] == 950 and report["padded_vocab_size"] == 1024
    bad = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "no"), "--weights", "x"])
    assert bad.exit_code == 2 and "NAME=SHARE" in bad.output


@given(st.characters(exclude_categories=["Cs"]))
def test_only_hangul_has_bytes_that_prove_hangul(character: str) -> None:
    assert proves_hangul(character.encode("utf-8")) == bool(HANGUL.match(character))


def test_only_hangul_has_bytes_that_prove_hangul_exhaustively() -> None:
    codes = [*range(0xD800), *range(0xE000, 0x20000)]
    assert all(proves_hangul(chr(code).encode()) == bool(HANGUL.match(chr(code))) for code in codes)
    others = "".join(chr(code) for code in codes if not HANGUL.match(chr(code)))
    assert not proves_hangul(others.encode()) and not proves_hangul(others[::-1].encode())


@pytest.mark.parametrize(
    ("spelt", "allowed"),
    [
        ("한".encode(), True),
        ("한".encode()[:2], True),
        (" 한".encode()[:3], True),
        ("한".encode()[:1], False),
        ("한".encode()[1:], False),
        ("하는".encode()[:5], False),
        ("한 것".encode(), False),
        (b"the", False),
        ("ㄱ".encode()[:2], False),
        ("가".encode() * 17, False),
    ],
)
def test_pieces_that_may_be_added(spelt: bytes, allowed: bool) -> None:
    assert may_be_added(spelt) == allowed


def test_the_most_frequent_pair_comes_first_and_overlaps_are_joined_from_the_left() -> None:
    words = [(("a", "a", "a", "b"), 3), (("a", "b"), 2)]
    merges = [(merge.piece, merge.count) for merge in grow(words, lambda left, right: True)]
    assert merges == [("aa", 6), ("ab", 5), ("aaab", 3)]
    only = [merge.piece for merge in grow(words, lambda left, right: "b" in right)]
    assert only == ["ab", "aab", "aaab"]
