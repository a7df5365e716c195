"""The formats that documents are read from and written to."""

from enum import StrEnum


class InputFormat(StrEnum):
    """Formats that documents are read from; usually the suffix of a file tells which."""

    txt = "txt"
    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    wet = "wet"
    parquet = "parquet"
    arrow = "arrow"


class TextUnit(StrEnum):
    """What a document of a .txt file is."""

    line = "line"
    file = "file"


class Encoding(StrEnum):
    """Encodings of text, by the names that Python knows them under; "auto" finds out for each file."""

    auto = "auto"
    utf_8 = "utf-8"
    cp949 = "cp949"
    utf_16 = "utf-16"


class OutputFormat(StrEnum):
    """Formats that documents are written to; each is also the suffix of such a file."""

    jsonl = "jsonl"
    jsonl_gz = "jsonl.gz"
    jsonl_zst = "jsonl.zst"
    parquet = "parquet"
