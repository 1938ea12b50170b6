import subprocess
import sys

import pytest

from zerosearch_jax.run import memory

# 60 arrays below the 32 MiB that glibc may keep, every second one freed; what stays resident of them, in MiB
PROGRAM = """
import resource
from zerosearch_jax.run import memory

def resident():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20

memory.keep()
before, arrays = resident(), []
for i in range(60):
    arrays.append(bytearray(b'x') * (20 * 2**20))
    arrays.append(bytearray(b'x') * 100_000)
kept = arrays[1::2]
del arrays
print(resident() - before)
memory.give_back()
print(resident() - before)
"""


@pytest.mark.skipif(memory.platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_arrays_are_kept_until_they_are_given_back():
    command = [sys.executable, '-c', PROGRAM]
    freed, given_back = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert given_back < 100 < 1000 < freed, (freed, given_back)
