"""Stopping on request: a signal sets a flag, and all ranks agree on it before anybody acts."""

import signal
from types import FrameType

from megatron_ko.log import get_logger
from megatron_ko.parallel.collectives import any_rank

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_log = get_logger(__name__)


class StopSignals:
    """Remembers SIGTERM, SIGUSR1 and SIGINT until the loop asks.

    A scheduler sends these before it takes a machine away. A rank that acted on its own would leave the others waiting
    in a collective, so the flag is combined over all ranks.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def install(self) -> None:
        """Replace this process's handlers. Repeated signals are harmless."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. A collective: every rank must call it at the same place."""
        stop = any_rank(self._received is not None)
        if stop:
            _log.info("stop requested (%s): saving", self._received.name if self._received else "on another rank")
        return stop
