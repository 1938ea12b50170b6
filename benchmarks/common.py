"""Timing for the benchmarks: best of a few repeats after a warm-up, one JSON line a figure."""

import json
import os
import platform
import time

import jax


def best_ms(function, *args, repeats: int = 10) -> float:
    """Milliseconds of the fastest of `repeats` calls of the jitted function, compilation excluded."""
    jitted = jax.jit(function)
    jax.block_until_ready(jitted(*args))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(jitted(*args))
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def emit(name: str, **figures):
    """One JSON line with the figures, the device and the load of the machine."""
    where = {'device': jax.devices()[0].device_kind, 'machine': platform.machine(), 'jax': jax.__version__}
    print(json.dumps({'name': name, **figures, **where, 'cores': os.cpu_count(), 'load': round(os.getloadavg()[0], 2)}))
