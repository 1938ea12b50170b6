"""Chips by name, with the memory that their makers publish, and devices to compile for without having them.

parse('a100-80gb:8')   eight GPUs of one host, or of several
parse('v5e:8x8')       a TPU slice by its topology
"""

from __future__ import annotations

import importlib.util
import math
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One accelerator."""

    memory_gib: float
    tpu: bool = False


CHIPS = {
    'a100-40gb': Chip(40),
    'a100-80gb': Chip(80),
    'h100-80gb': Chip(80),
    'h200': Chip(141),
    'l4': Chip(24),
    'v5e': Chip(16, tpu=True),
    'v5p': Chip(95, tpu=True),
    'v6e': Chip(32, tpu=True),
}


class Hardware(NamedTuple):
    """So many of one chip."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f'{self.name}:{"x".join(map(str, self.shape))}'

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def parse(text: str) -> Hardware:
    """Reads CHIP:COUNT or CHIP:TOPOLOGY.

    Raises:
      ValueError: an unknown chip, or no number of them.
    """
    name, _, shape = text.partition(':')
    if name not in CHIPS:
        raise ValueError(f'--hardware={text}: unknown chip {name!r}; there are {", ".join(CHIPS)}')
    parts = shape.split('x')
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f'--hardware={text}: how many? for example {name}:{"4x4" if CHIPS[name].tpu else "8"}')
    return Hardware(name, CHIPS[name], tuple(map(int, parts)))


def devices(hardware: Hardware) -> tuple[list, str]:
    """Devices to compile for, and whose compiler that is.

    The target's own where it is a TPU and libtpu is installed; else as many CPU devices, which the process must have
    (XLA_FLAGS=--xla_force_host_platform_device_count).
    """
    if hardware.chip.tpu and importlib.util.find_spec('libtpu'):
        from jax.experimental import topologies

        found = topologies.get_topology_desc(platform='tpu', topology_name=str(hardware)).devices
        return list(found), 'XLA:TPU'
    found = jax.devices('cpu')
    if len(found) < hardware.count:
        raise ValueError(
            f'compiling for {hardware.count} devices needs as many CPU devices, but there are {len(found)}'
        )
    return found[: hardware.count], 'XLA:CPU, as a stand-in'
