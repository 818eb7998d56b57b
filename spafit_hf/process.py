"""What a process sets once for itself, before it computes: what it keeps in memory, and what not.

A library leaves that to the process that it runs in; `spafit` and the Space set it where they start.
"""

from __future__ import annotations

import ctypes
import os
import platform

#: Just below the 32 MiB (`DEFAULT_MMAP_THRESHOLD_MAX`) up to which glibc learns from what is freed.
LARGEST = 32 * 2**20 - 2**16

ONEDNN_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
ONEDNN_ENTRIES = "32"


def bound_onednn() -> None:
    """Keep a few of the programs that oneDNN makes, where the user has not set how many. Before torch is imported.

    It makes one for each shape that it multiplies, and keeps a thousand, with their buffers. In bf16 on a CPU all
    products are its own: steps over batches of 122 lengths, 384 wide, peaked at 2.7 GB, with 32 entries at 1.2 GB, in
    no more time.
    """
    for name in ONEDNN_CACHES:
        os.environ.setdefault(name, ONEDNN_ENTRIES)


def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MiB of freed memory for what comes next.

    A pass over many rows frees blocks of some megabytes. glibc returns them to the system at once, and the next layer
    gets them as new pages, each filled with zeros by the kernel: a fifth of a pass of nine adapters on 64 tokens.

    From a block that was mapped and is freed glibc learns that blocks of its size are not worth mapping, and keeps
    twice as much (mallopt(3), `M_MMAP_THRESHOLD`). So one is taken and freed; nothing is written to it. Without effect
    where the environment sets these limits, and with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    library.free(library.malloc(ctypes.c_size_t(LARGEST)))
