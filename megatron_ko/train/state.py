"""Progress of a run, and results of a step and a validation: plain numbers, the same on every rank."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from megatron_ko.errors import CheckpointError
from megatron_ko.models.routing import LayerRouting

Record = dict[str, float | int | str | bool | None]  # one line of a metric file


@dataclass
class TrainState:
    """Progress of a run. All counts are global: over all ranks and since the first step.

    Attributes:
        step: optimizer steps done, skipped ones included.
        samples: sequences consumed.
        tokens: tokens that the loss counted in them.
        skipped: steps whose update was left out because loss or gradient was not finite.
        consecutive_skips: number of latest steps in a row that were skipped.
        evaluated_step: step of the newest validation; shows whether one is overdue after a stop.
        position: position in the data, written by the feed; empty in checkpoints of earlier versions.
        source_tokens: tokens by source, including sources that the run no longer reads.
        best_value, best_step: of the best validation so far.
        unimproved: validations since then.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    consecutive_skips: int = 0
    evaluated_step: int = 0
    position: dict[str, Any] = field(default_factory=dict)
    source_tokens: dict[str, int] = field(default_factory=dict)
    best_value: float | None = None
    best_step: int = 0
    unimproved: int = 0

    def done(self, steps: int) -> bool:
        """Whether the run has done all its steps."""
        return self.step >= steps

    def advance(
        self, result: "StepResult", samples: int, by_source: Mapping[str, int], position: Mapping[str, Any]
    ) -> None:
        """Count one finished step.

        Args:
            result: its result.
            samples: sequences that it read, over all ranks.
            by_source: their tokens by source.
            position: new position in the data.
        """
        for name, tokens in by_source.items():
            self.source_tokens[name] = self.source_tokens.get(name, 0) + tokens
        self.step += 1
        self.samples += samples
        self.tokens += result.trained_tokens
        self.skipped += int(result.skipped)
        self.consecutive_skips = self.consecutive_skips + 1 if result.skipped else 0
        self.position = dict(position)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            CheckpointError: the fields are not those of this version.
        """
        try:
            return cls(**saved)
        except TypeError as error:
            raise CheckpointError("the checkpoint's progress has unknown or missing fields", got=error) from None


@dataclass(frozen=True)
class StepResult:
    """The result of one step; the same on every rank.

    Attributes:
        loss: mean loss of the global batch in nats per token: a float64 sum of fp32 micro-batch sums, divided once.
        grad_norm: global norm before clipping; None when fp16 gradients overflowed.
        lr: learning rate of the step.
        loss_scale: scale that the gradients were computed with (1 without fp16).
        skipped: whether the update was left out because loss or gradients were not finite.
        trained_tokens: tokens that the loss counted, over all ranks.
        stop: whether any rank was asked to stop.
        metrics: means of other quantities of the objective.
        routing: routing statistics of each layer; empty for a dense model.
    """

    loss: float
    grad_norm: float | None
    lr: float
    loss_scale: float
    skipped: bool
    trained_tokens: int
    stop: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    routing: tuple[LayerRouting, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The result of a validation.

    Attributes:
        loss: mean over all counted tokens, or pairs, in nats.
        perplexity: its exponential; None if it is no mean over tokens.
        bits_per_byte: total bits divided by the bytes of text in the counted tokens; None if there are no bytes.
        samples: number of sequences.
        tokens: number of counted tokens.
        seconds: duration.
        metrics: means of other quantities of the objective.
        by_source: mean loss of each source's sequences, if the run reads several sources; None for a source without
            sequences here.
    """

    loss: float
    perplexity: float | None
    bits_per_byte: float | None
    samples: int
    tokens: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    by_source: Mapping[str, float | None] = field(default_factory=dict)
