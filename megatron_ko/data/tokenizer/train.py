"""Train a tokenizer from files: sample, train, prove the round trip, and only then give the folder its name."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer as Backend

from megatron_ko import __version__
from megatron_ko.data.blocks import check_inputs
from megatron_ko.data.documents import Document, read_documents
from megatron_ko.data.files import explained, new_folder
from megatron_ko.data.tokenizer.convert import to_tokenizer_json
from megatron_ko.data.tokenizer.gates import check_tokenizer
from megatron_ko.data.tokenizer.special import BEGIN, CHAT_END, CHAT_START, END, PAD, UNKNOWN
from megatron_ko.data.tokenizer.tokenizer import (
    RECORD,
    SENTENCEPIECE_MODEL,
    TOKENIZER_JSON,
    TRANSFORMERS_CONFIG,
    Tokenizer,
    load_tokenizer,
)
from megatron_ko.data.tokenizer.trainers import sentences_of, train_byte_bpe, train_sentencepiece
from megatron_ko.errors import DataError

# Random documents on which the gate and the figures of the report are computed.
_GATE_DOCUMENTS = 2000
_GATE_BYTES = 8 << 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class TokenizerOptions:
    """How to train.

    Attributes:
        model: "unigram" or "bpe" (SentencePiece, byte fallback), or "byte-bpe" (Hugging Face, Qwen2 pre-tokenizer).
        vocab_size: exact number of ids.
        key: text field of jsonl and parquet.
        character_coverage: share of characters with a piece of their own; SentencePiece only.
        max_bytes: text to train on; of a larger corpus, a random sample of documents.
        seed: of that sample.
    """

    model: Literal["unigram", "bpe", "byte-bpe"]
    vocab_size: int
    key: str = "text"
    character_coverage: float = 0.9995
    max_bytes: int = 200_000_000
    seed: int = 1234


@dataclass(frozen=True)
class TrainingReport:
    """What was trained on what, and how well it fits.

    Attributes:
        documents, bytes: the whole input, UTF-8.
        trained_documents, trained_bytes: given to the trainer.
        sentences: pieces that the text was split into; none is longer than SentencePiece's limit.
        trained_share: trained_bytes that reached the trainer, line breaks apart; 1.0 means that nothing was skipped.
        rejected: records that were no documents.
        gate_texts: texts that came back exactly.
        bytes_per_token, tokens_per_eojeol, byte_fallback_share: on the documents of the gate.
    """

    output: str
    model: str
    vocab_size: int
    fingerprint: str
    documents: int
    bytes: int
    rejected: int
    trained_documents: int
    trained_bytes: int
    sentences: int
    trained_share: float
    gate_texts: int
    bytes_per_token: float
    tokens_per_eojeol: float
    byte_fallback_share: float


def train_tokenizer(
    inputs: Sequence[Path], output: Path, options: TokenizerOptions, say: Say = lambda _: None
) -> TrainingReport:
    """Train on ``inputs`` and write the folder ``output``, which ``AutoTokenizer.from_pretrained`` loads.

    Args:
        inputs: .txt, .jsonl, .parquet, .gz, .zst files.
        output: new folder.
        options: how to train.
        say: told what is being done.

    Raises:
        DataError: bad input, an empty corpus, or ``output`` exists.
        TokenizerError: the vocabulary does not fit the text, or the gate failed; nothing is written.
    """
    check_inputs(inputs)
    with explained(output), new_folder(output) as folder:
        say("reading")
        corpus = _Corpus(inputs, options)
        say(f"training {options.model} on {corpus.trained_bytes / 1e6:.1f} MB")
        _train(corpus, folder, options)
        _write_json(folder / RECORD, {"kind": options.model})
        _write_transformers_config(folder)
        tokenizer = load_tokenizer(folder)
        say("checking the round trip")
        samples = corpus.samples()
        texts = check_tokenizer(tokenizer, samples)
        report = _report(corpus, tokenizer, options, samples, texts, output)
        record = {
            "format": 1,
            "kind": options.model,
            "fingerprint": tokenizer.fingerprint,
            "created_by": f"megatron_ko {__version__}",
            "options": asdict(options),
        }
        _write_json(folder / RECORD, record)
        load_tokenizer(folder)
    return report


class _Corpus:
    """The input, counted once, then streamed: all of it, or a seeded random share of its documents."""

    def __init__(self, inputs: Sequence[Path], options: TokenizerOptions) -> None:
        self._inputs, self._options = inputs, options
        self.documents = self.bytes = self.rejected = 0
        for path in inputs:
            for record in read_documents(path, key=options.key):
                if isinstance(record, Document):
                    self.documents += 1
                    self.bytes += len(record.text.encode("utf-8"))
                else:
                    self.rejected += 1
        if not self.documents:
            raise DataError(
                "the corpus is empty",
                got=f"0 documents, {self.rejected} rejected records in {', '.join(map(str, inputs))}",
                expected="at least one document",
                remedy=f"check the files and --json-key (now {options.key!r})",
            )
        self.share = min(1.0, options.max_bytes / self.bytes)
        self.trained_documents = self.trained_bytes = self.sentences = self.sentence_bytes = 0
        for text in self.texts(self.share):
            self.trained_documents += 1
            self.trained_bytes += len(text.encode("utf-8"))

    def texts(self, share: float) -> Iterator[str]:
        """A random ``share`` of the documents, the same at every call."""
        draw = random.Random(self._options.seed)
        for path in self._inputs:
            for record in read_documents(path, key=self._options.key):
                if isinstance(record, Document) and draw.random() < share:
                    yield record.text

    def sentences_for_training(self) -> Iterator[str]:
        """What the trainer sees, counted while it passes."""
        for text in self.texts(self.share):
            for sentence in sentences_of(text):
                self.sentences += 1
                self.sentence_bytes += len(sentence.encode("utf-8"))
                yield sentence

    def texts_for_training(self) -> Iterator[str]:
        """Whole documents, for a trainer that needs no sentences."""
        for text in self.texts(self.share):
            self.sentences += 1
            self.sentence_bytes += len(text.encode("utf-8"))
            yield text

    def samples(self) -> list[str]:
        """Documents for the gate: random, few and not too long together."""
        chosen: list[str] = []
        size = 0
        for text in self.texts(min(1.0, _GATE_DOCUMENTS / self.documents)):
            size += len(text.encode("utf-8"))
            if chosen and size > _GATE_BYTES:
                break
            chosen.append(text)
        return chosen


def _train(corpus: _Corpus, folder: Path, options: TokenizerOptions) -> None:
    if options.model == "byte-bpe":
        _write_backend(folder, train_byte_bpe(corpus.texts_for_training(), options.vocab_size))
        return
    sentences = corpus.sentences_for_training()
    model = train_sentencepiece(sentences, options.model, options.vocab_size, options.character_coverage)
    (folder / SENTENCEPIECE_MODEL).write_bytes(model)
    _write_backend(folder, to_tokenizer_json(model))


def _write_backend(folder: Path, backend: Backend) -> None:
    # Not backend.save: that tells a full disk as a plain Exception.
    (folder / TOKENIZER_JSON).write_text(backend.to_str(pretty=True), encoding="utf-8")


def _write_transformers_config(folder: Path) -> None:
    """What makes AutoTokenizer load the folder; without a clean-up that would change decoded spaces."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": [CHAT_START, CHAT_END],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
    }
    _write_json(folder / TRANSFORMERS_CONFIG, config)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _report(
    corpus: _Corpus, tokenizer: Tokenizer, options: TokenizerOptions, samples: list[str], texts: int, output: Path
) -> TrainingReport:
    ids = tokenizer.encode_batch(samples)
    tokens = sum(map(len, ids))
    fallback = {tokenizer.id_of(f"<0x{byte:02X}>") for byte in range(256)}
    spelt = sum(token in fallback for document in ids for token in document)
    eojeols = sum(len(text.split()) for text in samples)
    lost = sum(text.count("\n") + text.count("\t") for text in corpus.texts(corpus.share))
    expected = corpus.trained_bytes if options.model == "byte-bpe" else corpus.trained_bytes - lost
    return TrainingReport(
        output=str(output),
        model=options.model,
        vocab_size=tokenizer.vocab_size,
        fingerprint=tokenizer.fingerprint,
        documents=corpus.documents,
        bytes=corpus.bytes,
        rejected=corpus.rejected,
        trained_documents=corpus.trained_documents,
        trained_bytes=corpus.trained_bytes,
        sentences=corpus.sentences,
        trained_share=round(corpus.sentence_bytes / max(1, expected), 6),
        gate_texts=texts,
        bytes_per_token=round(sum(len(text.encode("utf-8")) for text in samples) / tokens, 4),
        tokens_per_eojeol=round(tokens / max(1, eojeols), 4),
        byte_fallback_share=round(spelt / tokens, 6),
    )
