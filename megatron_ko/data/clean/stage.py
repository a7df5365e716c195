"""What a stage is: it keeps, changes, annotates or drops a page; and filters, which are stages made of rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from megatron_ko.data.clean.page import Page

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Dropped:
    """The document ends here."""

    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The document continues with another text; ``counts`` tells how often each reason applied."""

    text: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Noted:
    """The document continues unchanged, with fields added to its record."""

    fields: Mapping[str, object]


# None: kept as it is.
Verdict = Dropped | Changed | Noted | None


class Stage(Protocol):
    """One job. Stages hold no state between documents, so that order and workers cannot matter."""

    def __call__(self, page: Page) -> Verdict:
        """Judge one page."""
        ...


@dataclass(frozen=True)
class Measure:
    """A measured quantity of one page, with the range in which the page is kept."""

    reason: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Rule(Generic[V]):
    """A measured quantity and the closed range in which a document is kept.

    Attributes:
        reason: reported when the value lies outside.
        measure: the value; NaN is inside every range.
        low, high: limits, None for no limit.
        bound: a cheap value that is never below ``measure`` (never above it, for a rule with ``low``). If it is in
            the range, nothing more is computed; the decision stays exact.
    """

    reason: str
    measure: Callable[[V], float]
    low: float | None = None
    high: float | None = None
    bound: Callable[[V], float] | None = None

    def broken(self, view: V) -> bool:
        """Whether the value lies outside the range."""
        if self.bound is not None:
            assert self.low is None or self.high is None
            if not self._outside(self.bound(view)):
                return False
        return self._outside(self.measure(view))

    def _outside(self, value: float) -> bool:
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)


class Filter(Generic[V]):
    """Rules in order over one view of the page; the first broken rule is the reason.

    Args:
        view: what the rules measure, made once a page.
        rules: those without limits are left out.
    """

    def __init__(self, view: Callable[[Page], V], rules: Sequence[Rule[V]]) -> None:
        self._view = view
        self._rules = [rule for rule in rules if rule.low is not None or rule.high is not None]

    def __call__(self, page: Page) -> Dropped | Noted | None:
        """Drop the page for the first rule that it breaks."""
        view = self._view(page)
        for rule in self._rules:
            if rule.broken(view):
                return Dropped(rule.reason)
        return None

    def measures(self, page: Page) -> list[Measure]:
        """The value of every rule, for calibrating its limits."""
        view = self._view(page)
        return [Measure(rule.reason, rule.measure(view), rule.low, rule.high) for rule in self._rules]


@dataclass(frozen=True)
class StageKind:
    """A kind of stage as the configuration knows it.

    Attributes:
        options: class of its section.
        build: section to stage.
    """

    options: type[Any]
    build: Callable[[Any], Stage]
