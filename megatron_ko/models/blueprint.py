"""What a model is built from, to train it or to use it."""

from dataclasses import dataclass, field, replace

from megatron_ko.config import ModelConfig, ParallelConfig, PrecisionConfig, RunConfig, TrainingConfig


@dataclass(frozen=True)
class Blueprint:
    """A network, its spread over ranks, and its numbers.

    Attributes:
        model: the network.
        parallel: sizes of the axes.
        precision: data type, back end and recipe.
        training: batch, and what trades memory for time; None for a model that is only used.
        sequence_length: tokens of a training sequence.
        document_mask: whether training keeps the documents of a sequence apart.
    """

    model: ModelConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    training: TrainingConfig | None = None
    sequence_length: int = 1
    document_mask: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> "Blueprint":
        """That of a training run."""
        return cls(
            model=config.model,
            parallel=config.parallel,
            precision=config.precision,
            training=config.training,
            sequence_length=config.data.sequence_length,
            document_mask=config.data.document_mask,
        )

    @property
    def for_inference(self) -> "Blueprint":
        """The same network on one rank, in its data type, without what belongs to training.

        That is a low-precision recipe, a capacity of experts, which would let a text depend on those beside it, and
        Transformer Engine's layers where there is no CUDA.
        """
        backend = "portable" if self.precision.layer_backend == "portable" else "auto"
        precision = self.precision.model_copy(update={"backend": backend, "recipe": "none", "fp8_weights": False})
        return replace(self, model=self.model.dropless, parallel=ParallelConfig(), precision=precision, training=None)
