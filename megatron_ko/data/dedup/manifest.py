"""What manifest.json and report.json of a deduplicated or decontaminated folder hold: these types are that JSON."""

from typing import NotRequired, TypedDict

# Documents or bytes that came in, went out, and were removed, by reason. Not a class: "in" is a keyword of Python.
Flow = TypedDict("Flow", {"in": int, "out": int, "removed": dict[str, int]})


class InputEntry(TypedDict):
    """One input: its path, size and hash, and what became of its records."""

    path: str
    bytes: int
    xxh3_128: str
    documents: int
    bytes_of_text: int
    rejected: int


class OutputEntry(TypedDict):
    """One file of documents."""

    file: str
    documents: int
    bytes_of_text: int
    bytes: int
    xxh3_128: str


class RejectedRecords(TypedDict):
    """Records that were no documents, and how many for each reason."""

    records: int
    reasons: dict[str, int]


class NearSettings(TypedDict):
    """How near duplicates were found."""

    shingles: str
    threshold: float
    bands: int
    rows: int


class DedupSettings(TypedDict):
    """Options of a deduplication that decide its result; ``against`` if there is an existing corpus."""

    key: str
    text_unit: str
    format: str | None
    encoding: str
    exact: list[str]
    near: NearSettings | None
    normalise: str
    keep: str
    least_characters: int
    suffix: str
    against: NotRequired[list[str]]


class AgainstReport(TypedDict):
    """The existing corpus, and by reason the number of documents that were removed because it has them."""

    inputs: list[InputEntry]
    removed: dict[str, int]


class DedupManifest(TypedDict):
    """manifest.json of ``data dedup``; everything but ``against`` is about the inputs that were deduplicated."""

    format: int
    created_by: str
    options: DedupSettings
    inputs: list[InputEntry]
    outputs: list[OutputEntry]
    documents: Flow
    bytes_of_text: Flow
    pieces_removed: dict[str, int]
    rejected: RejectedRecords
    against: NotRequired[AgainstReport]


class SourcePair(TypedDict):
    """Documents of one source that were removed in favour of documents of another one, or of the same."""

    removed_from: str
    kept_in: str
    exact: int
    near: int
    bytes: int


class ShownDocument(TypedDict):
    """Where a document of a cluster stands, and how it begins."""

    source: str
    position: int
    text: str


class ClusterEntry(TypedDict):
    """A cluster: its size, and some of its documents, the kept one first."""

    size: int
    documents: list[ShownDocument]


class ClusterReport(TypedDict):
    """Clusters of more than one document.

    Attributes:
        number, documents: how many clusters, and documents in them.
        sizes: number of clusters by size.
        largest, most_varied: those of most documents, and of most different texts.
    """

    number: int
    documents: int
    sizes: dict[str, int]
    largest: list[ClusterEntry]
    most_varied: list[ClusterEntry]


class NearCounts(TypedDict):
    """What the comparison of near duplicates counted."""

    compared_pairs: int
    similar_pairs: int
    documents_in_crowded_buckets: int
    connected_clusters: int
    documents_kept_in_them: int


class NearReport(NearCounts):
    """The same, and how similar documents are found and removed, by Jaccard similarity."""

    chance_of_being_compared_by_similarity: dict[str, float]
    removed_by_similarity_to_the_kept_document: dict[str, int]


class DedupReport(TypedDict):
    """report.json of ``data dedup``."""

    source_pairs: list[SourcePair]
    clusters: ClusterReport
    near: NearReport | None


class DecontaminateSettings(TypedDict):
    """Options of a decontamination that decide its result; ``against`` gives the hash of each evaluation file."""

    key: str
    text_unit: str
    format: str | None
    encoding: str
    against: dict[str, str | None]
    against_keys: list[str]
    unit: str
    size: int
    shortest: int
    suffix: str


class EvaluationFile(TypedDict):
    """One evaluation file: its items, those that are too short to be searched for, and those that were found."""

    file: str
    items: int
    too_short: int
    found: int


class FoundItem(TypedDict):
    """An item of an evaluation that was found, and the number of documents that share an n-gram with it."""

    file: str
    position: int
    field: str
    grams: int
    documents: int


class EvaluationReport(TypedDict):
    """What was found of the evaluation files."""

    files: list[EvaluationFile]
    most_found: list[FoundItem]


class DecontaminateManifest(TypedDict):
    """manifest.json of ``data decontaminate``."""

    format: int
    created_by: str
    options: DecontaminateSettings
    inputs: list[InputEntry]
    outputs: list[OutputEntry]
    documents: Flow
    bytes_of_text: Flow
    rejected: RejectedRecords
    evaluation: EvaluationReport
