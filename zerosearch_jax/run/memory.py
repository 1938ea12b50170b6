"""The host's memory."""

import ctypes
import platform

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def give_back():
    """Makes glibc return freed arrays of 8 MiB and more to the system.

    By default glibc keeps freed arrays below 32 MiB once one was freed: on a CPU the key-value cache would then stay in
    memory during the update.
    """
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**23)
