"""How the C library of a CPU rank treats freed memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 1 << 30


def keep_freed_memory() -> None:
    """Reuse what tensors free instead of giving it back to the kernel.

    glibc maps and unmaps every large block anew, and the kernel fills each page of it with zeros when it is touched
    first. Activations of the same sizes come and go in every step: that was 3 to 10 per cent of its CPU time.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # other C libraries have no such switch
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)
