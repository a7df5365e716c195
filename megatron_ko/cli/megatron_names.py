"""Maps the options of Megatron-LM's tools to our commands; options without a counterpart are refused with a reason."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ko.errors import ConfigError

if TYPE_CHECKING:
    from megatron_ko.data.tokens.preprocess import PreprocessOptions

_SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer")
_HUGGING_FACE = "HuggingFaceTokenizer"
_REFUSED_IN_PREPROCESSING = {
    "--split-sentences": "sentences are not split: documents are what GPT-like models are trained on",
    "--keep-newlines": "it belongs to --split-sentences; line breaks are always kept",
    "--lang": "it belongs to --split-sentences",
    "--vocab-file": "give a folder with a tokenizer.json as --tokenizer-model",
    "--merge-file": "give a folder with a tokenizer.json as --tokenizer-model",
    "--vocab-size": "the tokenizer determines the number of ids",
    "--find-optimal-num-workers": "set --workers to the number of cores",
    "--workers-to-check": "it belongs to --find-optimal-num-workers",
    "--max-documents": "it belongs to --find-optimal-num-workers",
    "--performance-dir": "it belongs to --find-optimal-num-workers",
}
_REFUSED_IN_TRAINING = {
    "--tokenizer-model": "it refers to an existing tokenizer; the new folder is --output-prefix",
    "--append-eod": "it belongs to preprocess_data.py",
    "--workers": "the trainers use all available cores",
    "--partitions": "the trainers read the files directly",
}


def preprocess_options(arguments: Sequence[str]) -> "PreprocessOptions":
    """Our options for the arguments of Megatron-LM's preprocess_data.py; writes PREFIX_KEY_document.bin and .idx.

    Raises:
        ConfigError: an option without a counterpart, or a tokenizer that is not a folder of ours or of Hugging Face.
    """
    from megatron_ko.cli.data_options import CORES
    from megatron_ko.data.text.inputs import expand_inputs
    from megatron_ko.data.tokens.preprocess import PreprocessOptions

    parser = argparse.ArgumentParser(
        prog="preprocess_data.py",
        description="Megatron-LM's options for: megatron-ko data preprocess",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, type=Path, help="Files, folders or patterns.")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help="Each writes PREFIX_KEY_document. [text]")
    add("--tokenizer-type", default=_HUGGING_FACE, help=f"{_HUGGING_FACE} or SentencePieceTokenizer.")
    add(
        "--tokenizer-model",
        required=True,
        type=Path,
        help="Folder with tokenizer.json, or the .model file in such a folder.",
    )
    add("--append-eod", action="store_true", help="End every document with the end-of-document token.")
    add("--output-prefix", required=True, type=Path, metavar="PREFIX")
    add("--workers", type=int, default=CORES, help="Processes.")
    add("--partitions", type=int, help="Not needed: documents always stay in input order.")
    add("--log-interval", type=int, help="Not needed: a terminal shows a progress bar.")
    add("--keep-sequential-samples", action="store_true", help="Always so.")
    _refuse(parser, arguments, _REFUSED_IN_PREPROCESSING)
    given = parser.parse_args(arguments)
    for name in ("partitions", "log_interval"):
        if getattr(given, name) is not None:
            print(f"note: --{name.replace('_', '-')} has no effect here", file=sys.stderr)
    return PreprocessOptions(
        inputs=expand_inputs(given.input),
        tokenizer=_tokenizer_folder(given.tokenizer_type, given.tokenizer_model),
        output=given.output_prefix,
        workers=given.workers,
        keys=tuple(given.json_keys),
        append_eod=given.append_eod,
        names=tuple(f"{given.output_prefix.name}_{key}_document" for key in given.json_keys),
    )


def training_words(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``megatron-ko tokenizer train`` for Megatron's arguments.

    Raises:
        ConfigError: an option without a counterpart.
    """
    parser = argparse.ArgumentParser(
        prog="train_tokenizer.py",
        description="Megatron-LM's options for: megatron-ko tokenizer train",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="Files.")
    add("--json-keys", nargs=1, default=["text"], metavar="KEY", help="Field of the text. [text]")
    add(
        "--tokenizer-type",
        default="SentencePieceTokenizer",
        help=f"SentencePieceTokenizer or {_HUGGING_FACE} (byte BPE).",
    )
    add("--model-type", choices=["unigram", "bpe"], default="unigram", help="Model of a SentencePieceTokenizer.")
    add("--vocab-size", required=True, help="Number of ids.")
    add("--character-coverage", help="Character coverage of a SentencePieceTokenizer.")
    add("--output-prefix", required=True, metavar="DIR", help="New folder.")
    _refuse(parser, arguments, _REFUSED_IN_TRAINING)
    given = parser.parse_args(arguments)
    if given.tokenizer_type not in (*_SENTENCEPIECE, _HUGGING_FACE):
        raise _unknown_type(given.tokenizer_type)
    model = "byte-bpe" if given.tokenizer_type == _HUGGING_FACE else given.model_type
    words = ["tokenizer", "train", "--input", *given.input, "--json-key", *given.json_keys, "--model", model]
    words += ["--vocab-size", given.vocab_size, "--output", given.output_prefix]
    return words + (["--character-coverage", given.character_coverage] if given.character_coverage else [])


def has_own_names(arguments: Sequence[str]) -> bool:
    """Whether these are options of our own commands, which the tools accept as well."""
    return any(word.split("=")[0] in ("--tokenizer", "--output", "--model") for word in arguments)


def _refuse(parser: argparse.ArgumentParser, arguments: Sequence[str], refused: dict[str, str]) -> None:
    for word in arguments:
        if (name := word.split("=")[0]) in refused:
            raise ConfigError(f"{name} is not supported by {parser.prog}", remedy=refused[name])


def _tokenizer_folder(kind: str, model: Path) -> Path:
    if kind not in (*_SENTENCEPIECE, _HUGGING_FACE):
        raise _unknown_type(kind)
    if not model.is_file():
        return model
    if model.name in ("tokenizer.model", "tokenizer.json") and (model.parent / "tokenizer.json").is_file():
        return model.parent
    raise ConfigError(
        "a SentencePiece model alone does not say which token ends a document",
        got=model,
        expected="a folder with tokenizer.json, tokenizer_config.json and tokenizer.model",
        remedy="convert it with transformers, or train one: megatron-ko tokenizer train",
    )


def _unknown_type(kind: str) -> ConfigError:
    return ConfigError(
        f"--tokenizer-type {kind} is not supported",
        expected=f"{_HUGGING_FACE} or SentencePieceTokenizer",
        remedy="save the tokenizer as a Hugging Face folder with a tokenizer.json",
    )
