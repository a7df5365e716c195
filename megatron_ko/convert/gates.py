"""What a conversion has to prove, and the table of what it proved. A gate that did not run has failed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from megatron_ko.errors import ConvertError, KoError

# "quick": tensors, tokenizer, and logits of text and conversations in one pass; "full": more tokens, and generation.
Depth = Literal["quick", "full"]


@dataclass(frozen=True)
class Gate:
    """One thing that was compared.

    Attributes:
        name: of what.
        tried: how many of them.
        ok: whether they agree.
        found: what differs, or how far they are apart.
    """

    name: str
    tried: int
    ok: bool
    found: str = ""


@dataclass(frozen=True)
class LogitGate:
    """How far the logits of a new model in fp32 are from an fp64 run of the same stored numbers.

    Attributes:
        max_difference: largest absolute difference.
        top1: share of positions whose most probable token is the same.
        positions: how many were compared.
        mean: root of the mean square of the differences.
        own_mean, own_max: the same of the source's own fp32, which the new model is judged by.
    """

    max_difference: float
    top1: float
    positions: int
    mean: float = 0.0  # records of earlier versions compared two fp32 runs, and have no more
    own_mean: float = 0.0
    own_max: float = 0.0

    def to_json(self) -> dict[str, float]:
        """For lineage.json."""
        return asdict(self)


@dataclass(frozen=True)
class Proof:
    """All gates of a conversion.

    Attributes:
        logits: of all samples together; None where there is nothing to compare with.
        gates: in the order of the table.
        already: the output was there before, made of the same weights in the same way, and was left as it is.
    """

    logits: LogitGate | None
    gates: tuple[Gate, ...] = ()
    already: bool = False

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.already:
            return "was made of the same weights before; nothing to do"
        return "the same model" if self.logits else "written and proven"

    def to_json(self) -> dict[str, object]:
        """For --json."""
        logits = self.logits.to_json() if self.logits else {}
        return {**logits, "gates": [asdict(gate) for gate in self.gates], "already": self.already}


def gate_table(gates: Iterable[Gate]) -> str:
    """One line a gate."""
    rows = [(gate.name, f"{gate.tried:,}", "ok" if gate.ok else "DIFFERS", gate.found) for gate in gates]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {tried:>{widths[1]}}  {verdict:<{widths[2]}}  {found}".rstrip()
        for name, tried, verdict, found in rows
    )


@contextmanager
def running(what: str) -> Iterator[None]:
    """Refuse the conversion when something that a gate needs cannot be loaded or run, for whatever reason.

    Raises:
        ConvertError: with what it said.
    """
    try:
        yield
    except (KoError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ConvertError(
            f"the conversion is not proven: {what} could not run",
            got=f"{type(error).__name__}: {str(error)[:1000]}",
            expected="every gate ok",
            remedy="nothing was written; the configuration or the weights are not what they say",
        ) from error


def require_gates(gates: Iterable[Gate]) -> None:
    """Refuse the conversion unless every gate passed.

    Raises:
        ConvertError: with the table, naming the gates that failed.
    """
    gates = list(gates)
    failed = [gate.name for gate in gates if not (gate.ok and gate.tried)]
    if failed or not gates:
        raise ConvertError(
            f"the conversion is not proven: {', '.join(failed)} differ" if gates else "nothing was compared",
            got="\n" + gate_table(gates),
            expected="every gate ok",
            remedy="nothing was written; the configuration or the weights are not what they say",
        )
