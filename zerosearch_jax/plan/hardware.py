"""Chips by name, with the figures that their makers publish, and devices to compile for without having them.

parse('a100-80gb:8')   eight GPUs of one host, or of several
parse('v5e:8x8')       a TPU slice by its topology

A new chip is a row of CHIPS, and of GPUS where it is a GPU whose own compiler is to be asked.
"""

import importlib.util
import math
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One accelerator, as its data sheet has it."""

    memory_gib: float
    tflops: float  # bfloat16, dense
    memory_gbs: float  # GB/s of its memory
    links_gbs: float  # GB/s to its neighbours, both directions together
    price: str  # field of config.prices
    tpu: bool = False

    @property
    def launch(self) -> float:
        """Seconds that a kernel takes beside its arithmetic and its bytes: to start, to fill the chip, to run dry.

        Of GPUs: what bytes leave of a token of 1.5B on an H100, measured at 1, 16 and 64 rows (docs/plans.md). Of TPUs,
        whose programs run without a host: assumed.
        """
        return 1e-6 if self.tpu else 2.2e-6

    @property
    def collective(self) -> float:
        """Seconds of a collective that moves nothing, within a host or a slice. Assumed: nothing has been measured."""
        return 5e-6 if self.tpu else 15e-6


# of the data sheets' arithmetic and memory bandwidth: what one large product and one long sum reach. An H100's, 713
# TFLOP/s and 2,675 GB/s (`limits` in benchmarks/results/gpu.jsonl), of the others assumed; of links what the protocol
# of NCCL leaves of NVLink's line rate (NVIDIA/nccl-tests, issue 212)
REACHED = {'arithmetic': 0.72, 'memory': 0.8, 'links': 0.8}

CHIPS = {
    'a100-40gb': Chip(40, 312, 1555, 600, 'a100_hour'),
    'a100-80gb': Chip(80, 312, 2039, 600, 'a100_hour'),
    'h100-80gb': Chip(80, 989, 3350, 900, 'h100_hour'),
    'h200': Chip(141, 989, 4800, 900, 'h200_hour'),
    'l4': Chip(24, 121, 300, 64, 'l4_hour'),
    'v5e': Chip(16, 197, 819, 200, 'v5e_hour', tpu=True),
    'v5p': Chip(95, 459, 2765, 600, 'v5p_hour', tpu=True),
    'v6e': Chip(32, 918, 1640, 448, 'v6e_hour', tpu=True),
}


# with which a TPU's compiler is content without a TPU; to be set before `devices`
TPU_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Gpu(NamedTuple):
    """What XLA:GPU asks of a GPU in order to compile for it (XLA's GpuTargetConfigProto)."""

    name: str
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    l2_mib: int
    shared_kib: tuple[int, int]  # of a core, and of a block at most


GPUS = {
    'a100-80gb': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 1.41, 40, (164, 163)),
    'h100-80gb': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 1.98, 50, (228, 227)),
}
CUDA = ('jax_cuda12_plugin', 'jax_cuda13_plugin')


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

    @property
    def memory(self) -> int:
        """Bytes of one chip."""
        return int(self.chip.memory_gib * 2**30)


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

    The target's own where it is installed (extras `tpu` and `cuda`); else as many CPU devices, which the process must
    have (XLA_FLAGS=--xla_force_host_platform_device_count).
    """
    from jax.experimental import topologies

    if hardware.chip.tpu and importlib.util.find_spec('libtpu'):
        found = topologies.get_topology_desc(platform='tpu', topology_name=str(hardware)).devices
        return list(found), 'XLA:TPU'
    if hardware.name in GPUS and any(map(importlib.util.find_spec, CUDA)):
        topology = topologies.get_topology_desc(
            platform='cuda', target_config=_target(hardware), topology=f'1x1x{hardware.count}'
        )
        return list(topology.devices), 'XLA:GPU'
    found = jax.devices('cpu')
    if len(found) < hardware.count:
        raise ValueError(
            f'compiling for {hardware.count} devices needs as many CPU devices, but there are {len(found)}'
        )
    return found[: hardware.count], 'XLA:CPU, as a stand-in'


def _target(hardware: Hardware) -> str:
    gpu, kib = GPUS[hardware.name], 1024
    return f"""
      gpu_device_info {{
        cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
        core_count: {gpu.cores} fpus_per_core: {64 if gpu.capability[0] < 9 else 128} clock_rate_ghz: {gpu.clock_ghz}
        threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        shared_memory_per_block: {48 * kib} shared_memory_per_core: {gpu.shared_kib[0] * kib}
        shared_memory_per_block_optin: {gpu.shared_kib[1] * kib} l2_cache_size: {gpu.l2_mib * kib * kib}
        memory_bandwidth: {int(hardware.chip.memory_gbs * 1e9)} device_memory_size: {hardware.memory}
      }}
      platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 9 }}
      device_description_str: "{gpu.name}"
    """
