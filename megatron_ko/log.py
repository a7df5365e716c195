"""A logger that knows its rank: rank 0 speaks; the others tell errors only, and say who they are."""

import logging
import sys

_ROOT = "megatron_ko"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass ``__name__``."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def configure(rank: int = 0, level: str = "info") -> None:
    """Send this process's messages to standard error: everything from ``level`` up on rank 0, errors elsewhere.

    Warnings are about what all ranks see alike: data, checkpoints, configuration.
    """
    root = logging.getLogger(_ROOT)
    root.handlers.clear()
    root.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(
        logging.Formatter(f"{prefix}%(message)s" if level != "debug" else f"{prefix}%(name)s: %(message)s")
    )
    root.addHandler(handler)
    chosen = getattr(logging, level.upper())
    root.setLevel(chosen if rank == 0 else max(chosen, logging.ERROR))
