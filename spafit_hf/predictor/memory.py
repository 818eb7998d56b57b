"""Memory that a pass gives back and the next one takes again.

A pass over many rows frees blocks of some megabytes. glibc returns such blocks to the system at once, and the next
layer gets them as new pages, each filled with zeros by the kernel: a fifth of a pass of nine adapters on 64 tokens.
"""

from __future__ import annotations

import torch

#: Just below the 32 MiB (`DEFAULT_MMAP_THRESHOLD_MAX`) up to which glibc learns from what is freed.
LARGEST = 32 * 2**20 - 2**16


def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MiB of freed memory for what comes next, in this process.

    From a block that was mapped and is freed glibc learns that blocks of its size are not worth mapping, and keeps
    twice as much (mallopt(3), `M_MMAP_THRESHOLD`). So one is taken and freed; nothing is written to it. Without effect
    where somebody set these limits by the environment, and with other C libraries.
    """
    torch.empty(LARGEST, dtype=torch.uint8)
