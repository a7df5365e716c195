"""Train a tokenizer from files: sample, train, prove the round trip, and only then give the folder its name."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer as Backend

from megatron_ko import __version__
from megatron_ko.data.text.blocks import check_inputs
from megatron_ko.data.text.formats import Encoding
from megatron_ko.data.tokenizer.compare import broken_characters
from megatron_ko.data.tokenizer.convert import to_tokenizer_json
from megatron_ko.data.tokenizer.corpus import SOURCE, Corpus, CorpusSampling, Group
from megatron_ko.data.tokenizer.extra import ExtraTokens
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
from megatron_ko.storage.files import explain_disk_errors, new_folder

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
        balance_by, weights, temperature, encoding: as in ``CorpusSampling``.
        extra: user-defined and reserved tokens, part of the vocabulary's size.
    """

    model: Literal["unigram", "bpe", "byte-bpe"]
    vocab_size: int
    key: str = "text"
    character_coverage: float = 0.9995
    max_bytes: int = 200_000_000
    seed: int = 1234
    balance_by: str = SOURCE
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    encoding: Encoding = Encoding.utf_8
    extra: ExtraTokens = field(default_factory=ExtraTokens)

    @property
    def sampling(self) -> CorpusSampling:
        """What is taken of the corpus."""
        return CorpusSampling(
            self.key, self.max_bytes, self.seed, self.balance_by, self.weights, self.temperature, self.encoding
        )


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
        bytes_per_token, tokens_per_eojeol, byte_fallback_share: on the documents of the gate; the share is that of
            tokens that are not whole characters, as in ``compare``.
        groups: what was balanced, and what was taken of each.
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
    groups: tuple[Group, ...]


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
    options.extra.check()
    with explain_disk_errors(output), new_folder(output) as folder:
        say("reading")
        corpus = Corpus(inputs, options.sampling)
        counted = _Counted(corpus)
        say(f"training {options.model} on {corpus.trained_bytes / 1e6:.1f} MB")
        _train(counted, folder, options)
        _write_json(folder / RECORD, {"kind": options.model})
        _write_transformers_config(folder)
        tokenizer = load_tokenizer(folder)
        say("checking the round trip")
        samples = corpus.samples()
        texts = check_tokenizer(tokenizer, samples)
        report = replace(_report(corpus, counted, tokenizer, options, samples), output=str(output), gate_texts=texts)
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


class _Counted:
    """What reaches the trainer, counted while it passes."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self.sentences = self.bytes = 0

    def pieces(self, whole: bool) -> Iterator[str]:
        """Sentences, or whole documents for a trainer that needs none."""
        for text in self._corpus.texts():
            for sentence in (text,) if whole else sentences_of(text):
                self.sentences += 1
                self.bytes += len(sentence.encode("utf-8"))
                yield sentence


def _train(counted: _Counted, folder: Path, options: TokenizerOptions) -> None:
    if options.model == "byte-bpe":
        _write_backend(folder, train_byte_bpe(counted.pieces(whole=True), options.vocab_size, options.extra))
        return
    sentences = counted.pieces(whole=False)
    model = train_sentencepiece(sentences, options.model, options.vocab_size, options.character_coverage, options.extra)
    (folder / SENTENCEPIECE_MODEL).write_bytes(model)
    _write_backend(folder, to_tokenizer_json(model, options.extra))


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
    corpus: Corpus, counted: _Counted, tokenizer: Tokenizer, options: TokenizerOptions, samples: list[str]
) -> TrainingReport:
    ids = tokenizer.encode_batch(samples)
    tokens = sum(map(len, ids))
    _, partial = broken_characters(tokenizer)
    spelt = sum(int(partial[document].sum()) for document in ids)
    eojeols = sum(len(text.split()) for text in samples)
    lost = sum(text.count("\n") + text.count("\t") for text in corpus.texts())
    expected = corpus.trained_bytes if options.model == "byte-bpe" else corpus.trained_bytes - lost
    return TrainingReport(
        output="",
        model=options.model,
        vocab_size=tokenizer.vocab_size,
        fingerprint=tokenizer.fingerprint,
        documents=corpus.documents,
        bytes=corpus.bytes,
        rejected=corpus.rejected,
        trained_documents=corpus.trained_documents,
        trained_bytes=corpus.trained_bytes,
        sentences=counted.sentences,
        trained_share=round(counted.bytes / max(1, expected), 6),
        gate_texts=0,
        bytes_per_token=round(sum(len(text.encode("utf-8")) for text in samples) / tokens, 4),
        tokens_per_eojeol=round(tokens / max(1, eojeols), 4),
        byte_fallback_share=round(spelt / tokens, 6),
        groups=tuple(corpus.groups.values()),
    )
