"""How the process holds its memory."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def one_arena() -> bool:
    """Has all threads share glibc's one heap; to be called before JAX is first used.

    Returns:
        Whether it took effect: nothing happens where the C library is another.
    """
    return _set((M_ARENA_MAX, 1))


def keep_freed_memory() -> bool:
    """Gives back what is free now, and lets glibc keep whatever is freed from here on.

    On a CPU, XLA allocates a step's temporary buffers anew at every step. By default glibc maps
    them from the kernel and gives them back each time, and the page faults cost up to half of a
    step's time. Since the process holds on to its peak memory from then on, what is needed once,
    to make the params or to compile, had better be over.

    Returns:
        As `one_arena`.
    """
    library = _glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return _set((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))


def _set(*settings: tuple[int, int]) -> bool:
    library = _glibc()
    return library is not None and all([library.mallopt(*setting) == 1 for setting in settings])


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):
        return None
