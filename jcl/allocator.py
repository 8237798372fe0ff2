"""How the process holds its memory."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed; to be called before JAX is first used.

    On a CPU, XLA allocates a step's temporary buffers anew at every step. By default glibc maps
    them from the kernel and gives them back each time, and the page faults cost up to half of a
    step's time. The process then holds on to its peak memory. Nothing happens where the C library
    is another.

    Returns:
        Whether it took effect.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return all([mallopt(*setting) == 1 for setting in settings])
