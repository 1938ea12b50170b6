import subprocess
import sys

import pytest

from zerosearch_jax.run import memory

# 60 arrays below the 32 MiB that glibc may keep, after one of that size was freed; what stays resident of them
PROGRAM = """
import resource, sys
from zerosearch_jax.run import memory

def resident():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1] == 'True':
    memory.give_back()
bytearray(b'x') * (30 * 2**20)
before, arrays = resident(), []
for i in range(60):
    arrays.append(bytearray(b'x') * (20 * 2**20))
    keep = bytearray(b'x') * 100_000
    arrays.append(keep)
kept = arrays[1::2]
del arrays, keep
print(resident() - before)
"""


@pytest.mark.skipif(memory.platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_arrays_go_back_to_the_system():
    stays = {}
    for told in (False, True):
        command = [sys.executable, '-c', PROGRAM, str(told)]
        stays[told] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert stays[True] < 100 < stays[False], stays
