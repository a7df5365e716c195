"""Korean pieces for a tokenizer that has none: every old id stays, and text without Hangul keeps its ids.

New pieces are found by continuing the training of the BPE on Korean text. Each new merge comes after all old ones
and spells something that only Korean text holds, so nothing else can change. A new piece stands for a fixed sequence of
old pieces: the mean of their embedding rows is where its own row begins.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from megatron_ko import __version__
from megatron_ko.data.text.blocks import check_inputs
from megatron_ko.data.tokenizer.corpus import Corpus, CorpusSampling
from megatron_ko.data.tokenizer.extra import ExtraTokens
from megatron_ko.data.tokenizer.grow import Merge, grow
from megatron_ko.data.tokenizer.pieces import MARK, Spelling, may_be_added, proves_hangul
from megatron_ko.data.tokenizer.proof import old_pieces, prove_extension
from megatron_ko.data.tokenizer.tokenizer import RECORD, SENTENCEPIECE_MODEL, TOKENIZER_JSON, Tokenizer, load_tokenizer
from megatron_ko.data.tokenizer.unencodable import missing_bytes
from megatron_ko.errors import TokenizerError
from megatron_ko.storage.files import explain_disk_errors, new_folder
from megatron_ko.storage.open_json import JsonObject

NEW_IDS = "new_ids.jsonl"
# If the base does not cut text, words are cut before their space, as its pieces are.
_WORDS = Regex(f"[{MARK} ]*[^{MARK} ]+")
_MOST_WORDS = 1_500_000
# Files that describe the base's vocabulary, or are written anew.
_NOT_COPIED = {TOKENIZER_JSON, RECORD, NEW_IDS, SENTENCEPIECE_MODEL, "vocab.json", "merges.txt"}
_COPIED = {".json", ".jinja", ".txt", ".md"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExtendOptions:
    """How to extend.

    Attributes:
        new_ids: exact number of ids to add.
        sampling: what is taken of the corpus.
        character_coverage: share of Hangul characters that get a piece first; only where characters without a piece
            are spelt in bytes that cannot be merged (SentencePiece).
        extra: user-defined and reserved tokens, counted among the new ids.
    """

    new_ids: int
    sampling: CorpusSampling = field(default_factory=lambda: CorpusSampling(max_bytes=50_000_000))
    character_coverage: float = 0.9995
    extra: ExtraTokens = field(default_factory=ExtraTokens)


@dataclass(frozen=True)
class ExtendReport:
    """What was added, and what it changed on the documents of the gate.

    Attributes:
        base_vocab_size, new_ids, vocab_size: ids before, added, after.
        proved_texts: texts for which new ids, written in old ones, were the old ids.
        tokens_before, tokens_after, bytes, eojeols: of the sampled documents.
        missing_bytes: for which neither the base nor the new vocabulary has a token.
    """

    output: str
    base: str
    base_fingerprint: str
    fingerprint: str
    base_vocab_size: int
    new_ids: int
    vocab_size: int
    documents: int
    trained_documents: int
    trained_bytes: int
    proved_texts: int
    tokens_before: int
    tokens_after: int
    bytes: int
    eojeols: int
    missing_bytes: list[int]


def extend_tokenizer(
    base: Path, inputs: Sequence[Path], output: Path, options: ExtendOptions, say: Say = lambda _: None
) -> ExtendReport:
    """Add Korean pieces to the Hugging Face folder ``base`` and write the folder ``output``.

    Raises:
        DataError: bad input, an empty corpus, or ``output`` exists.
        TokenizerError: the base is no BPE, the text gives too few pieces, or a proof failed; nothing is written.
    """
    check_inputs(inputs)
    old = load_tokenizer(base)
    content = _content(base)
    _refuse_gaps(base, old)
    spelling = Spelling(content)
    options.extra.check(old.vocabulary())
    with explain_disk_errors(output), new_folder(output) as folder:
        say("reading")
        corpus = Corpus(inputs, options.sampling)
        say(f"finding {options.new_ids:,} pieces in {corpus.trained_bytes / 1e6:.1f} MB")
        characters, merges = _new_pieces(base, content, spelling, corpus, options)
        _extend(content, old, characters, merges)
        counts = {**characters, **{merge.piece: merge.count for merge in merges}}
        parts = old_pieces(content, spelling, counts, merges)
        # Their rows begin as the mean of what spelt them until now.
        added = _add_extra(content, old, options.extra)
        parts |= {number: old.encode(token) for token, number in added.items()}
        counts |= dict.fromkeys(added, 0)
        _write_folder(base, folder, content)
        (folder / RECORD).write_text('{"kind": "huggingface"}\n', encoding="utf-8")
        new = load_tokenizer(folder)
        say("proving that every old id, and every text without Hangul, is what it was")
        samples = corpus.samples()
        proved = prove_extension(old, new, parts, samples)
        _write_new_ids(folder / NEW_IDS, new, spelling, counts, parts)
        _write_record(folder, base, old, new, options)
        before, after = (sum(map(len, tokenizer.encode_batch(samples))) for tokenizer in (old, new))
    return ExtendReport(
        output=str(output),
        base=str(base),
        base_fingerprint=old.fingerprint,
        fingerprint=new.fingerprint,
        base_vocab_size=old.vocab_size,
        new_ids=new.vocab_size - old.vocab_size,
        vocab_size=new.vocab_size,
        documents=corpus.documents,
        trained_documents=corpus.trained_documents,
        trained_bytes=corpus.trained_bytes,
        proved_texts=proved,
        tokens_before=before,
        tokens_after=after,
        bytes=sum(len(text.encode("utf-8")) for text in samples),
        eojeols=sum(len(text.split()) for text in samples),
        missing_bytes=missing_bytes(old),
    )


def _refuse_gaps(base: Path, old: Tokenizer) -> None:
    """Programs that load the folder number its added tokens anew, without the gap."""
    numbers = set(old.vocabulary().values())
    missing = [number for number in range(old.vocab_size) if number not in numbers]
    if missing:
        raise TokenizerError(
            f"{base} cannot be extended",
            got=f"no token has id {missing[0]:,}, and {len(missing):,} ids in all are free below {old.vocab_size:,}",
            expected="ids without gaps",
            remedy="give the free ids tokens of their own, such as <|reserved_0|>, in tokenizer.json",
        )


def _content(base: Path) -> JsonObject:
    content: JsonObject = json.loads((base / TOKENIZER_JSON).read_text(encoding="utf-8"))
    model = content["model"]
    if model.get("type", "BPE" if "merges" in model else None) != "BPE":
        # A Unigram model weighs all ways to cut a text: a new piece would change the old ids of what stands beside it.
        raise TokenizerError(
            f"{base} cannot be extended so that every text keeps its old ids",
            got=f"a {model.get('type')} model: a new piece changes how it cuts the text around that piece",
            expected="BPE, byte-level or of SentencePiece, where new merges come after all old ones",
            remedy="extend a BPE base, or train a new tokenizer with megatron-ko tokenizer train",
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise TokenizerError(
            f"{base} cannot be extended",
            got="pieces with a prefix or suffix of their own, or dropout",
            expected="plain BPE",
            remedy="train a new tokenizer with megatron-ko tokenizer train",
        )
    return content


def _new_pieces(
    base: Path, content: JsonObject, spelling: Spelling, corpus: Corpus, options: ExtendOptions
) -> tuple[dict[str, int], list[Merge]]:
    """Characters that get a piece, with how often they occur, and merges."""
    backend = Backend.from_file(str(base / TOKENIZER_JSON))
    counts = _count_words(backend, corpus)
    known = content["model"]["vocab"]
    characters: dict[str, int] = {}
    if spelling.byte_fallback and not spelling.byte_level:
        characters = _frequent_characters(counts, known, options)
    words = Counter[tuple[str, ...]]()
    for word, count in counts.items():
        words[tuple(_pieces_of(backend, word, spelling, characters))] += count

    def allowed(left: str, right: str) -> bool:
        piece = left + right
        if piece in known or spelling.byte_piece(left) or spelling.byte_piece(right):
            return False
        return may_be_added(spelling.bytes_of(piece))

    wanted = options.new_ids - len(options.extra) - len(characters)
    merges = []
    for merge in grow(words.items(), allowed) if wanted else ():
        merges.append(merge)
        if len(merges) == wanted:
            break
    if len(merges) < wanted:
        most = len(merges) + len(characters) + len(options.extra)
        raise TokenizerError(
            "the text has too few Korean pieces that occur twice",
            got=options.new_ids,
            expected=f"at most {most} new ids",
            remedy=f"--vocab-size {most}, or more text",
        )
    return characters, merges


def _count_words(backend: Backend, corpus: Corpus) -> Counter[str]:
    """Words that hold Hangul, cut and normalised as the base does; of very many, those that occur twice."""
    cut = backend.pre_tokenizer or pre_tokenizers.Split(_WORDS, "isolated")
    normalizer = backend.normalizer
    counts = Counter[str]()
    for text in corpus.texts():
        whole = normalizer.normalize_str(text) if normalizer else text
        counts.update(word for word, _ in cut.pre_tokenize_str(whole))
    spelling = Spelling(json.loads(backend.to_str()))
    korean = Counter({word: count for word, count in counts.items() if proves_hangul(spelling.bytes_of(word))})
    if len(korean) > _MOST_WORDS:
        korean = Counter({word: count for word, count in korean.items() if count > 1})
    return korean


def _frequent_characters(counts: Counter[str], known: dict[str, int], options: ExtendOptions) -> dict[str, int]:
    """Hangul characters without a piece, the most frequent first, until enough of the text is covered."""
    seen = Counter[str]()
    for word, count in counts.items():
        for character in word:
            if proves_hangul(character.encode("utf-8")):
                seen[character] += count
    missing = sorted(((-count, character) for character, count in seen.items() if character not in known))
    covered = sum(count for character, count in seen.items() if character in known)
    chosen: dict[str, int] = {}
    for negative, character in missing[: options.new_ids - len(options.extra)]:
        if covered >= options.character_coverage * seen.total():
            break
        chosen[character] = -negative
        covered -= negative
    return chosen


def _pieces_of(backend: Backend, word: str, spelling: Spelling, characters: dict[str, int]) -> list[str]:
    """The pieces of a word in the base, with new characters in place of their bytes."""
    pieces = [token.value for token in backend.model.tokenize(word)]
    if not characters:
        return pieces
    result: list[str] = []
    index = 0
    while index < len(pieces):
        character = ""
        if all(map(spelling.byte_piece, group := pieces[index : index + 3])):
            # Every Hangul character has three bytes.
            character = b"".join(map(spelling.bytes_of, group)).decode("utf-8", errors="ignore")
        known = len(character) == 1 and character in characters
        result.append(character if known else pieces[index])
        index += 3 if known else 1
    return result


def _extend(content: JsonObject, old: Tokenizer, characters: dict[str, int], merges: Sequence[Merge]) -> None:
    """Put the new pieces into tokenizer.json, behind the largest old id."""
    model = content["model"]
    # An added token that is not in the vocabulary would get its id anew when loaded, by the size of the vocabulary.
    for token in content.get("added_tokens", ()):
        model["vocab"].setdefault(token["content"], token["id"])
    pieces = [*characters, *(merge.piece for merge in merges)]
    model["vocab"].update({piece: old.vocab_size + index for index, piece in enumerate(pieces)})
    if any(isinstance(merge, str) for merge in model["merges"]):
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    model["merges"].extend([merge.left, merge.right] for merge in merges)


def _add_extra(content: JsonObject, old: Tokenizer, extra: ExtraTokens) -> dict[str, int]:
    """Put user-defined and reserved tokens behind the last new piece; their ids."""
    vocabulary = content["model"]["vocab"]
    first = max(vocabulary.values()) + 1
    names = [(token, False) for token in extra.user_defined]
    names += [(token, True) for token in extra.reserved_names(old.vocabulary())]
    content.setdefault("added_tokens", [])
    for number, (token, special) in enumerate(names, first):
        vocabulary[token] = number
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        content["added_tokens"].append({"id": number, "content": token, **flags})
    return {token: number for number, (token, _) in enumerate(names, first)}


def _write_folder(base: Path, folder: Path, content: JsonObject) -> None:
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in _COPIED and path.name not in _NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    (folder / TOKENIZER_JSON).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    config = folder / "tokenizer_config.json"
    described = json.loads(config.read_text(encoding="utf-8"))
    if "vocab_size" in described:
        described["vocab_size"] = len(content["model"]["vocab"])
    # The class that takes tokenizer.json as it is. Others (GPT2Tokenizer of SmolLM2) build their own pre-tokenizer in
    # transformers 5 and lose what the base was trained with, such as single digits.
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    model = content["model"]
    if (base / "vocab.json").is_file():
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if (base / "merges.txt").is_file():
        lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_new_ids(
    path: Path, new: Tokenizer, spelling: Spelling, counts: dict[str, int], parts: dict[int, list[int]]
) -> None:
    added = new.user_defined.keys() | new.special_tokens.keys()
    with path.open("w", encoding="utf-8") as stream:
        for piece, count in counts.items():
            number = new.id_of(piece)
            assert number is not None
            spelt = piece.encode("utf-8") if piece in added else spelling.bytes_of(piece)
            text = spelt.decode("utf-8", errors="replace")
            line = {"id": number, "text": text, "bytes": spelt.hex(), "count": count, "old_ids": parts[number]}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_record(folder: Path, base: Path, old: Tokenizer, new: Tokenizer, options: ExtendOptions) -> None:
    record = {
        "format": 1,
        "kind": "huggingface",
        "fingerprint": new.fingerprint,
        "created_by": f"megatron_ko {__version__}",
        "base": {"folder": str(base), "fingerprint": old.fingerprint, "vocab_size": old.vocab_size},
        "vocab_size": new.vocab_size,
        "new_ids": [old.vocab_size, new.vocab_size],
        "embedding": {
            "rows": f"{old.vocab_size} to {new.vocab_size - 1}",
            "initialise": "mean of the old rows of old_ids",
            "of": ["input embedding", "output layer"],
            "file": NEW_IDS,
        },
        "options": asdict(options),
    }
    (folder / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
