"""Everything that is needed to build a model, for training or for inference."""

from dataclasses import dataclass, field, replace

from megatron_ko.config import ModelConfig, ParallelConfig, PrecisionConfig, RunConfig, TrainingConfig


@dataclass(frozen=True)
class Blueprint:
    """A network, its parallel layout and its precision.

    Attributes:
        model: the network.
        parallel: sizes of the axes.
        precision: data type, back end and recipe.
        training: batch size and options that trade memory for time; None for inference.
        sequence_length: tokens of a training sequence.
        document_mask: whether attention is limited to a token's own document in training.
    """

    model: ModelConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    training: TrainingConfig | None = None
    sequence_length: int = 1
    document_mask: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> "Blueprint":
        """The blueprint of a training run."""
        return cls(
            model=config.model,
            parallel=config.parallel,
            precision=config.precision,
            training=config.training,
            sequence_length=config.data.sequence_length,
            document_mask=config.separates_documents,
        )

    @property
    def for_inference(self) -> "Blueprint":
        """The same network on one rank, in its data type, without the settings that are only for training.

        These are the low-precision recipe, the capacity of experts (with it, a text would depend on the others in its
        batch), and Transformer Engine's layers if there is no CUDA.
        """
        backend = "portable" if self.precision.layer_backend == "portable" else "auto"
        precision = self.precision.model_copy(update={"backend": backend, "recipe": "none", "fp8_weights": False})
        return replace(self, model=self.model.dropless, parallel=ParallelConfig(), precision=precision, training=None)
