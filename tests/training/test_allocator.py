"""Freed memory stays with the process: a block that is taken again brings no new pages."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, sys
from fastcifar.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 40 << 20
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
take()
before = faults()
for _ in range(5):
    take()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's allocator")
def test_a_block_that_is_taken_again_brings_no_new_pages():
    def new_pages(how: str) -> int:
        run = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert new_pages("keep") < 100 < new_pages("default")
