"""Freed memory stays with the process: a block that is taken again brings no new pages."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, resource
from fastcifar.training.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 40 << 20
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
def new_pages():
    take()
    before = faults()
    for _ in range(5):
        take()
    return faults() - before
default = new_pages()
assert keep_freed_memory()
print(default, new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's allocator")
def test_a_block_that_is_taken_again_brings_no_new_pages():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    default, kept = map(int, run.stdout.split())
    assert kept < 100 < default
