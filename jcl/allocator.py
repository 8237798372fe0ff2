"""How the process holds its memory."""

import ctypes
import os
import sys

# Parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def few_arenas() -> bool:
    """Has glibc keep a heap for every core and one more; to be called before JAX is first used.

    With a single one a small model's step takes longer (those of configs/meta/sinusoid.py 8 to
    30 %), and the peak of GPT-2 small is no lower (docs/performance.md).

    Returns:
        Whether it took effect: nothing happens where the C library is another.
    """
    library = _glibc()
    return library is not None and library.mallopt(M_ARENA_MAX, _arenas()) == 1


def keep_freed_memory() -> bool:
    """Gives back what is free now, and lets glibc keep whatever is freed from here on.

    On a CPU, XLA allocates a step's temporary buffers anew at every step. By default glibc maps
    them from the kernel and gives them back each time, and the page faults cost up to half of a
    step's time. Since the process holds on to its peak memory from then on, what is needed once,
    to make the params or to compile, had better be over.

    Returns:
        As `few_arenas`.
    """
    library = _glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, _arenas()))
    return all([library.mallopt(*setting) == 1 for setting in settings])


def _arenas() -> int:
    return len(os.sched_getaffinity(0)) + 1


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):
        return None
