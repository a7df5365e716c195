"""Tokenizers: trained with a round-trip gate, loaded by transformers as they are, encoded at full speed here."""

from megatron_ko.data.tokenizer.tokenizer import Encoded, Tokenizer, load_tokenizer
from megatron_ko.data.tokenizer.train import TokenizerOptions, TrainingReport, train_tokenizer

__all__ = ["Encoded", "Tokenizer", "TokenizerOptions", "TrainingReport", "load_tokenizer", "train_tokenizer"]
