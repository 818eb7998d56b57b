"""What the C library keeps of memory that a pass frees. A process that serves sets it where it starts."""

from __future__ import annotations

import ctypes
import platform

#: Just below the 32 MiB (`DEFAULT_MMAP_THRESHOLD_MAX`) up to which glibc learns from what is freed.
LARGEST = 32 * 2**20 - 2**16


def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MiB of freed memory for what comes next.

    A pass over many rows frees blocks of some megabytes. glibc returns them to the system at once, and the next layer
    gets them as new pages, each filled with zeros by the kernel: a fifth of a pass of nine adapters on 64 tokens.
    From a block that was mapped and is freed it learns not to map its size, and keeps twice as much (mallopt(3),
    `M_MMAP_THRESHOLD`). Without effect where the environment sets these limits, and with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    library.free(library.malloc(ctypes.c_size_t(LARGEST)))
