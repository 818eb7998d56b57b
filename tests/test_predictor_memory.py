"""What the C library keeps of freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from spafit_hf.predictor import memory

# The module alone: what its package imports takes ten seconds.
FAULTS = """
import ctypes, resource, runpy
keep_freed_memory = runpy.run_path({module!r})["keep_freed_memory"]
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if {keep}:
    keep_freed_memory()
for turn in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [library.malloc(ctypes.c_size_t(4 * 2**20)) for _ in range(8)]
    for block in blocks:
        library.memset(block, 1, 4 * 2**20)
    for block in blocks:
        library.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like")
def test_freed_memory_is_not_asked_for_again() -> None:
    def faults(keep: bool) -> int:
        code = FAULTS.format(module=memory.__file__, keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)

    pages = 8 * 4 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults(keep=True) < pages / 10 < pages / 2 < faults(keep=False)
