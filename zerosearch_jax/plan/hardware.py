"""Chips by name, with their makers' figures, and devices to compile for that need not be there.

parse('a100-80gb:8')   eight GPUs of one host, or of several
parse('v5e:8x8')       a TPU slice by its topology

A new chip is a row of CHIPS and, if it is a GPU whose own compiler should be used, also a row of GPUS.
"""

import importlib.util
import math
import os
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One accelerator, with the figures of its data sheet."""

    memory_gib: float
    tflops: float  # bfloat16, dense; float32 if it has no bfloat16
    memory_gbs: float  # GB/s of its memory
    links_gbs: float  # GB/s to its neighbours, both directions together
    price: str  # field of config.prices
    tpu: bool = False
    bfloat16: bool = True

    @property
    def launch(self) -> float:
        """Seconds that a kernel takes besides its arithmetic and its bytes: to launch, to fill and to drain the chip.

        For GPUs it is fitted: what bytes do not explain of a decode step of 1.5B on an H100, at 1, 16 and 64
        rows (docs/plans.md). For TPUs, whose programs run without a host, it is assumed.
        """
        return 1e-6 if self.tpu else 2.2e-6

    @property
    def collective(self) -> float:
        """Seconds of a collective besides its bytes, within a host or a slice. Assumed, not measured."""
        return 5e-6 if self.tpu else 15e-6


# shares of the data sheets' figures that are reached. Arithmetic and memory: by one large product and one long sum on
# an H100, 713 TFLOP/s and 2,675 GB/s (`limits` in benchmarks/results/gpu.jsonl); assumed for other chips. Links: what
# NCCL's protocol leaves of NVLink's line rate (NVIDIA/nccl-tests, issue 212)
REACHED = {'arithmetic': 0.72, 'memory': 0.8, 'links': 0.8}

# GPUs as in NVIDIA's data sheets, the SXM version if there is one, without sparsity (the B200 is an eighth of a DGX
# B200); links are NVLink, or PCIe x16. TPUs as in Google Cloud's page of each version
CHIPS = {
    'a100-40gb': Chip(40, 312, 1555, 600, 'a100_hour'),
    'a100-80gb': Chip(80, 312, 2039, 600, 'a100_hour'),
    'h100-80gb': Chip(80, 989, 3350, 900, 'h100_hour'),
    'h200': Chip(141, 989, 4800, 900, 'h200_hour'),
    'h20': Chip(96, 148, 4000, 900, 'h20_hour'),
    'b200': Chip(180, 2250, 8000, 1800, 'b200_hour'),
    't4': Chip(16, 8.1, 320, 32, 't4_hour', bfloat16=False),
    'a10': Chip(24, 125, 600, 64, 'a10_hour'),
    'l4': Chip(24, 121, 300, 64, 'l4_hour'),
    'v5e': Chip(16, 197, 819, 200, 'v5e_hour', tpu=True),
    'v5p': Chip(95, 459, 2765, 600, 'v5p_hour', tpu=True),
    'v6e': Chip(32, 918, 1640, 448, 'v6e_hour', tpu=True),
}


# lets a TPU's compiler run without a TPU; set it before calling `devices`
TPU_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Gpu(NamedTuple):
    """What XLA:GPU needs to know of a GPU to compile for it (XLA's GpuTargetConfigProto)."""

    name: str
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    l2_mib: int
    shared_kib: tuple[int, int]  # shared memory of a core, and the most of a block


GPUS = {
    'a100-80gb': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 1.41, 40, (164, 163)),
    'h100-80gb': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 1.98, 50, (228, 227)),
    'h200': Gpu('NVIDIA H200', (9, 0), 132, 1.98, 50, (228, 227)),
    'h20': Gpu('NVIDIA H20', (9, 0), 78, 1.98, 60, (228, 227)),
}
CUDA = ('jax_cuda12_plugin', 'jax_cuda13_plugin')


class Hardware(NamedTuple):
    """A number of equal chips."""

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


def prepare(text: str) -> None:
    """Sets up as many CPU devices as `text` asks for, without a real accelerator, to compile for what `parse` reads.

    Call it before jax looks for devices.
    """
    count = math.prod(int(part) for part in text.partition(':')[2].split('x') if part.isdigit())
    os.environ['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count} --xla_gpu_autotune_level=0'
    )
    os.environ.update(JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1', **TPU_ENVIRONMENT)
    jax.config.update('jax_platforms', 'cpu')


def devices(hardware: Hardware) -> tuple[list, str]:
    """Devices to compile for, and the name of the compiler.

    It is the target's own compiler if that is installed (extras `tpu` and `cuda`); otherwise as many CPU devices stand
    in, which the process must have (XLA_FLAGS=--xla_force_host_platform_device_count).
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
