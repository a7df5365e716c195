"""Which tokens are read, and in what mixture."""

from pathlib import Path

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class Source(Section):
    """One indexed dataset."""

    resume = Resume.FREE

    prefix: Path = Field(
        description="Path of the .bin/.idx pair without its suffix; or that of several shards, or their folder."
    )
    weight: float | None = Field(
        None, gt=0, description="Share in the mixture; give it to every source or to none (in proportion to tokens)."
    )
    name: str | None = Field(
        None,
        min_length=1,
        description="What metrics call it; those of one name are counted together. None: the last part of the prefix, "
        "without the number of a shard.",
    )


class DataConfig(Section):
    """The corpus of a run."""

    resume = Resume.FREE

    tokenizer: Path = Field(description="Folder of the tokenizer that the corpus was encoded with.")
    sources: tuple[Source, ...] = Field(min_length=1, description="Indexed datasets.")
    split: tuple[float, float, float] = Field(
        (98.0, 2.0, 0.0), description="Weights of the train, validation and test parts; documents are split in order."
    )
    sequence_length: int = Field(gt=0, description="Tokens in one training sample.")
    document_mask: bool = Field(
        False, description="A token sees its own document only, not those before it in the sample."
    )
    filler: Path | None = Field(
        None,
        description="Indexed text whose tokens fill what rows leave empty of a sample, and are trained: no padding. "
        "None: padding, which is not trained.",
    )
    cache_dir: Path | None = Field(
        None, description="Where sample indices are cached; None: 'cache' beside the first source."
    )
