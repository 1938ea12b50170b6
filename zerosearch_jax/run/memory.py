"""The host's memory."""

import ctypes
import platform

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def give_back():
    """Lets freed arrays of 8 MiB and more go back to the system.

    glibc by itself keeps what is below 32 MiB once such an array was freed: on a CPU the slots' cache would stay beside
    what an update needs.
    """
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**23)
