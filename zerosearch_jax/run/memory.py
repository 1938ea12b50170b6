"""The host's memory."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

_libc = ctypes.CDLL(None) if platform.libc_ver()[0] == 'glibc' else None


def keep():
    """Makes glibc keep freed arrays below 32 MiB, the most that it allows, for the next ones (docs/measurements.md).

    Otherwise they go back to the system and come again as pages that have to be cleared.
    """
    if _libc:
        _libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        _libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back():
    """Returns what is kept to the system, so that a key-value cache does not stay in memory during an update."""
    if _libc:
        _libc.malloc_trim(0)
