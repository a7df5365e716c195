"""Stops a run on request: a signal sets a flag, and all ranks agree on it before they act."""

import signal
from types import FrameType

from megatron_ko.log import get_logger

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_log = get_logger(__name__)


class StopSignals:
    """Remembers SIGTERM, SIGUSR1 and SIGINT until the loop checks for them.

    A scheduler sends these signals before it reclaims a machine. A rank that acted alone would leave the others waiting
    in a collective, so each rank sends its flag with the loss of its next step, and all act on the sum.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def install(self) -> None:
        """Replace this process's handlers. Repeated signals are harmless."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)

    def came(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._received is not None

    def stop(self, agreed: bool) -> bool:
        """Log that the run stops if the ranks have agreed on it; returns whether it stops."""
        if agreed:
            _log.info("stop requested (%s): saving", self._received.name if self._received else "on another rank")
        return agreed
