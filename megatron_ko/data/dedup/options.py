"""What is to be compared, and how."""

from dataclasses import dataclass, field
from pathlib import Path

from megatron_ko.data.dedup.lsh import Bands, bands_for
from megatron_ko.data.dedup.manifest import DedupSettings
from megatron_ko.data.dedup.normalise import Normalisation
from megatron_ko.data.dedup.shingles import Shingles
from megatron_ko.data.text.formats import Encoding, InputFormat, TextUnit
from megatron_ko.data.text.inputs import check_distinct, check_inputs
from megatron_ko.data.text.streams import STDIN
from megatron_ko.data.text.writers import check_writable_kind
from megatron_ko.errors import DataError

LEVELS = ("document", "paragraph", "line")
POLICIES = ("first", "longest", "priority")
THRESHOLD = 0.45


@dataclass(frozen=True)
class Near:
    """When two documents are near duplicates.

    Attributes:
        shingles: what their texts are cut into.
        threshold: Jaccard similarity of their sets of shingles, at least.
        bands: which pairs are compared at all.
    """

    shingles: Shingles = field(default_factory=Shingles)
    threshold: float = THRESHOLD
    bands: Bands = field(default_factory=lambda: bands_for(THRESHOLD))


@dataclass(frozen=True)
class InputFiles:
    """The files that documents come from.

    Attributes:
        paths: in order; a document's number is its place in them.
        key: text field of jsonl and parquet.
        text_unit: a document of a .txt file is a "line" or the whole "file".
        format: of the inputs; None: as their suffixes say.
        existing: how many of the paths, from the first, are a corpus that is only compared with: its documents all
            stay, and are not written again. Its formats are as the suffixes say, and text is UTF-8.
        encoding: of text inputs.
    """

    paths: tuple[Path, ...]
    key: str = "text"
    text_unit: TextUnit = TextUnit.line
    format: InputFormat | None = None
    existing: int = 0
    encoding: Encoding = Encoding.utf_8

    @property
    def written(self) -> range:
        """The sources that are deduplicated, and written."""
        return range(self.existing, len(self.paths))

    def format_of(self, source: int) -> InputFormat | None:
        """The format that a source was said to have."""
        return self.format if source in self.written else None

    def encoding_of(self, source: int) -> Encoding:
        """The encoding that a source was said to have."""
        return self.encoding if source in self.written else Encoding.utf_8

    def check(self) -> None:
        """Refuse files that are missing, of unknown kind, given twice, or that cannot be read twice.

        Raises:
            DataError: which file.
        """
        if STDIN in self.paths:
            raise DataError(
                "the standard input cannot be read several times", got="-", remedy="save it to a file, and give that"
            )
        for source, path in enumerate(self.paths):
            check_inputs((path,), self.format_of(source))
        check_distinct(self.paths)


@dataclass(frozen=True)
class Resources:
    """How the work is done; none of it changes a byte of the result.

    Attributes:
        workers: processes.
        memory: bytes that a worker may use for sorting.
    """

    workers: int = 1
    memory: int = 512 << 20


@dataclass(frozen=True)
class DedupOptions:
    """What to deduplicate into what.

    Attributes:
        input: the files.
        output: new folder.
        levels: of exact duplicates, out of ``LEVELS``; near duplicates imply documents.
        near: None for exact duplicates only.
        normalisation: what counts as the same text.
        keep: document of a cluster that stays: the "first", the "longest", or by "priority": of the source that is
            given first, the longest.
        least_characters: paragraphs and lines that are shorter after normalisation always stay.
        suffix: of the output files.
        resources: processes and memory.
    """

    input: InputFiles
    output: Path
    levels: tuple[str, ...] = ("document",)
    near: Near | None = None
    normalisation: Normalisation = field(default_factory=Normalisation)
    keep: str = "first"
    least_characters: int = 30
    suffix: str = ".jsonl.zst"
    resources: Resources = field(default_factory=Resources)

    def settings(self) -> DedupSettings:
        """The options that decide the result."""
        against = self.input.paths[: self.input.existing]
        settings: DedupSettings = {
            "key": self.input.key,
            "text_unit": self.input.text_unit,
            "format": self.input.format,
            "encoding": self.input.encoding.value,
            "exact": [level for level in LEVELS if level in self.levels],
            "near": None
            if self.near is None
            else {
                "shingles": str(self.near.shingles),
                "threshold": self.near.threshold,
                "bands": self.near.bands.bands,
                "rows": self.near.bands.rows,
            },
            "normalise": str(self.normalisation),
            "keep": self.keep,
            "least_characters": self.least_characters,
            "suffix": self.suffix,
        }
        return {**settings, "against": list(map(str, against))} if against else settings

    def check(self) -> None:
        """Refuse what cannot work, before anything is read.

        Raises:
            DataError: which option, or which file.
        """
        if unknown := set(self.levels) - set(LEVELS):
            raise DataError(
                "unknown level of exact duplicates",
                got=", ".join(sorted(unknown)),
                expected=f"some of {', '.join(LEVELS)}",
                remedy="--exact document,paragraph",
            )
        if not self.levels and self.near is None:
            raise DataError("nothing to look for", remedy="--exact document, --near, or both")
        if self.keep not in POLICIES:
            raise DataError("unknown policy", got=self.keep, expected=f"one of {', '.join(POLICIES)}")
        check_output(self.output, self.suffix)
        self.input.check()


def check_output(output: Path, suffix: str) -> None:
    """Refuse to overwrite, and a kind of file that cannot be written.

    Raises:
        DataError: either.
    """
    check_writable_kind(Path(f"x{suffix}"))
    if output.exists():
        raise DataError(
            "the output exists already; nothing is overwritten",
            got=str(output),
            remedy="choose another --output, or remove it",
        )
