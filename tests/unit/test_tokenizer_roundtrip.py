"""Text comes back exactly, and transformers gives the same ids, for every algorithm."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ko.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokenizer.gates import NASTY
from megatron_ko.data.tokenizer.special import SPECIAL_TOKENS

MODELS = ("unigram", "bpe", "byte-bpe")
Folder = Callable[[str], Path]

# Every scalar value, with more of what breaks tokenizers: runs, borders of pieces, things that look like tokens.
PIECES = [
    "ㅋ",
    "ㅋㅋ",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\u2581",
    "가",
    "힣",
    "나다",
    "1",
    "</s>",
    "<0x0A>",
    "\u0301",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=60).map("".join)
RELAXED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tokenizer_folder: Folder) -> Path:
    return tokenizer_folder(request.param)


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def test_transformers_gives_the_same_ids_token_by_token(folder: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    for text in NASTY:
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.encode(text, parse_special=True) == oracle.encode(text)
        assert oracle.decode(ids) == tokenizer.decode(ids) == text
    assert len(oracle) == tokenizer.vocab_size
    assert (oracle.eos_token_id, oracle.bos_token_id) == (tokenizer.eod, tokenizer.bos)
    assert (oracle.pad_token_id, oracle.unk_token_id) == (tokenizer.pad, tokenizer.unk)


@RELAXED
@given(text=TEXT)
def test_any_text_comes_back_and_both_back_ends_agree(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert [ids] == tokenizer.reference_batch([text]) == tokenizer.encode_batch([text])


@RELAXED
@given(texts=st.lists(TEXT, max_size=8))
def test_joined_documents_are_encoded_as_alone(tokenizer: Tokenizer, texts: list[str]) -> None:
    for append_eod in (True, False):
        encoded = tokenizer.encode_documents(texts, append_eod=append_eod)
        end = [tokenizer.eod] if append_eod else []
        expected = [tokenizer.encode(text) + end for text in texts]
        assert encoded.lengths.tolist() == [len(ids) for ids in expected]
        assert encoded.ids.tolist() == [token for ids in expected for token in ids]


@pytest.mark.parametrize(
    "text",
    [
        "ㅋ" * 30_000,
        " " * 30_000,
        "가나다라" * 8000,
        "학교에 간다. " * 4000,
        "\n" * 20_000,
        "한 줄\n" * 6000 + "가" * 20_000 + "\n끝",
        "\u2581" * 20_000 + "가 나" * 3000,
    ],
    ids=["jamo", "spaces", "no space", "no line break", "only line breaks", "long last line", "underscores"],
)
def test_long_text_is_cut_only_where_nothing_changes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert [ids] == tokenizer.reference_batch([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_documents([text, "가"], append_eod=False).ids.tolist() == ids + tokenizer.encode("가")


def test_special_tokens_are_single_ids_and_cannot_be_smuggled_in(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user\n안녕<|im_end|></s>"
    parsed = tokenizer.encode(text, parse_special=True)
    assert [parsed[0], *parsed[-2:]] == [4, 5, 2] == [tokenizer.special_tokens[t] for t in
                                                      ("<|im_start|>", "<|im_end|>", "</s>")]  # fmt: skip
    plain = tokenizer.encode(text)
    assert not set(plain) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(parsed) == tokenizer.decode(plain) == text
    assert tokenizer.decode(parsed, skip_special=True) == "user\n안녕"
    assert list(tokenizer.special_tokens) == list(SPECIAL_TOKENS)


def test_every_byte_can_be_decoded(tokenizer: Tokenizer) -> None:
    """Single bytes are no text, but three of them are: every token that spells a byte is there and joins others."""
    for character in ("뷁", "𠮷", "é", "\u07ff"):
        ids = tokenizer.encode(character)
        assert tokenizer.decode(ids) == character
    assert tokenizer.decode(tokenizer.encode("뷁")[:1]) in {"\ufffd", "뷁"}


def test_the_fingerprint_is_of_the_ids_not_of_the_files(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.kind == "huggingface"
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode("학교에 간다.\n") == tokenizer.encode("학교에 간다.\n")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"][0]["content"] = "<other>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


def test_real_text(tokenizer_folder: Folder, shared_data: Path) -> None:
    from megatron_ko.data.text.documents import Document, read_documents

    records = read_documents(shared_data / "tech_docs_ko.jsonl.gz")
    texts = [record.text for record, _ in zip(records, range(40), strict=False) if isinstance(record, Document)]
    assert texts
    for model in MODELS:
        tokenizer = load_tokenizer(tokenizer_folder(model))
        ids = tokenizer.encode_batch(texts)
        assert ids == tokenizer.reference_batch(texts)
        assert [tokenizer.decode(document) for document in ids] == texts


@RELAXED
@given(TEXT)
def test_tokens_spell_as_many_bytes_as_the_text_has(tokenizer: Tokenizer, text: str) -> None:
    spelt = tokenizer.token_bytes()
    assert spelt[tokenizer.encode(text)].sum() == len(text.encode("utf-8"))
    assert spelt[tokenizer.eod] == 0 and len(spelt) == tokenizer.vocab_size
