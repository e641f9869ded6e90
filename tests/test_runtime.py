"""The process: freed memory stays and waiting threads spin briefly, unless the environment wants otherwise."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FAULTS = """
import ctypes, resource, sys
from rsdmri.runtime import keep_freed_memory

done = keep_freed_memory() if sys.argv[1] == "keep" else False
allocate, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
allocate.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def touch():
    block = allocate(ctypes.c_size_t(48 << 20))
    ctypes.memset(block, 1, 48 << 20)
    free(block)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, **environment: str) -> tuple[str, int]:
    run = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    done, count = run.stdout.split()
    return done, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is what is set")
def test_freed_blocks_are_used_again_without_new_pages():
    done, few = page_faults("keep")
    assert done == "True"
    assert few < 100
    assert page_faults("leave")[1] > 5 * 20
    assert page_faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"  # someone else has decided


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ["passive", "1000"]),
        ({"GOMP_SPINCOUNT": "7"}, ["passive", "7"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "None"]),
    ],
)
def test_waiting_threads_spin_briefly_unless_told_otherwise(given, found):
    script = "import os, rsdmri.runtime; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    run = subprocess.run(
        [sys.executable, "-c", script], env=plain | given, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == found
