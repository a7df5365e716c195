"""All quantities in a run's metric files: written by the trainer, read by console, trackers and report."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

# "number": plotted as a curve; "text": a note, or an exact value; "mark": position of the record in the run.
Kind = Literal["number", "text", "mark"]
Where = Literal["always", "experts", "gpu", "preference"]


@dataclass(frozen=True)
class Quantity:
    """One key of a record.

    Attributes:
        name: the key.
        meaning: a short description with its unit.
        kind: a plotted number, a text, or a mark of position and time.
        where: which runs have it: all, or those with experts, a choice of attention kernels, or preferences.
    """

    name: str
    meaning: str
    kind: Kind = "number"
    where: Where = "always"


@dataclass(frozen=True)
class Schema:
    """The records of one metric file.

    Attributes:
        file: its name in ``metrics/``.
        quantities: keys of a record.
        by_source: prefix of the keys that runs with several sources have for each source.
    """

    file: str
    quantities: tuple[Quantity, ...]
    by_source: str

    def names(self, where: Iterable[Where] = get_args(Where)) -> tuple[str, ...]:
        """Keys in the records of runs of these kinds."""
        return tuple(quantity.name for quantity in self.quantities if quantity.where in where)

    def columns(self) -> tuple[str, ...]:
        """Keys whose values are numbers, including marks."""
        return tuple(quantity.name for quantity in self.quantities if quantity.kind != "text")

    def curves(self, record: Mapping[str, object]) -> Iterator[tuple[str, float]]:
        """The values of a record that trackers plot: its numbers, without marks."""
        left_out = {quantity.name for quantity in self.quantities if quantity.kind != "number"}
        for name, value in record.items():
            if name not in left_out and isinstance(value, int | float):
                yield name, value

    def check(self, record: Iterable[str]) -> None:
        """Check that all keys of a record are declared here."""
        known = set(self.names())
        strange = [name for name in record if name not in known and not name.startswith(self.by_source)]
        assert not strange, f"not in metrics/schema.py: {strange}"


_PREFERENCE = (
    Quantity("accuracy", "share of pairs whose better answer has the larger reward", where="preference"),
    Quantity("margin", "mean reward of the better answers less that of the worse ones", where="preference"),
    Quantity("reward_good", "beta times log-probability above the reference, better answers", where="preference"),
    Quantity("reward_bad", "the same of the worse answers", where="preference"),
    Quantity("logp_good", "mean log-probability of a token, better answers, nats", where="preference"),
    Quantity("logp_bad", "the same of the worse answers", where="preference"),
)
_KTO = (Quantity("baseline", "kto: mean gain of answers to other prompts, at least 0, nats", where="preference"),)
TRAIN = Schema(
    "train.jsonl",
    (
        Quantity("step", "steps done, skipped ones included", "mark"),
        Quantity("loss", "mean over the tokens, or pairs, of the global batch, in nats; null when not finite"),
        Quantity("loss_hex", "the same number to the last bit (float.hex)", "text"),
        Quantity("grad_norm", "global norm before clipping; null when fp16 gradients overflowed"),
        Quantity("lr", "learning rate of this step"),
        Quantity("tokens", "tokens that the loss counted since the first step, over all ranks"),
        Quantity("samples", "sequences consumed since the first step, over all ranks"),
        Quantity("step_time_s", "seconds from asking for the batch to the finished update"),
        Quantity("tokens_per_s", "tokens of the global batch divided by that"),
        Quantity("loss_scale", "fp16 only: scale of the gradients of this step; else 1"),
        Quantity("skipped", "whether the update was left out because loss or gradients were not finite"),
        Quantity("memory_peak", "bytes on rank 0: highest use since the start"),
        Quantity("memory_reserved", "bytes on rank 0 that the allocator holds"),
        Quantity("tflops", "model TFLOP/s a rank"),
        Quantity("mfu", "that divided by the dense peak of the device; null where the peak is not known"),
        Quantity("time", "seconds since the epoch", "mark"),
        Quantity("attention", "kernels that attention ran on", "text", "gpu"),
        Quantity("expert_imbalance", "load of the busiest expert in even shares, mean of layers", where="experts"),
        Quantity("expert_imbalance_worst", "the same of the worst layer", where="experts"),
        Quantity("expert_load_least", "load of the least busy expert in even shares", where="experts"),
        Quantity("expert_dropped", "share of the choices that were dropped", where="experts"),
        Quantity("router_entropy", "mean of the layers", where="experts"),
        Quantity("router_aux_loss", "balancing loss before its weight, mean of the layers", where="experts"),
        Quantity("router_z_loss", "z-loss before its weight, mean of the layers", where="experts"),
        *_PREFERENCE,
        *_KTO,
    ),
    by_source="tokens/",
)
VALID = Schema(
    "valid.jsonl",
    (
        Quantity("step", "steps done", "mark"),
        Quantity("tokens", "tokens that the loss counted since the first step"),
        Quantity("valid_loss", "mean over all counted tokens, or pairs, in nats"),
        Quantity("valid_loss_hex", "the same number to the last bit", "text"),
        Quantity("perplexity", "its exponential; null for a mean over pairs"),
        Quantity("bits_per_byte", "all bits over all bytes of text that the counted tokens spell"),
        Quantity("samples", "sequences"),
        Quantity("valid_tokens", "counted tokens"),
        Quantity("eval_time_s", "seconds"),
        Quantity("time", "seconds since the epoch", "mark"),
        *_PREFERENCE,
        *_KTO,
    ),
    by_source="valid_loss/",
)
EXPERTS, SUPERSEDED = "experts.jsonl", "superseded.jsonl"
