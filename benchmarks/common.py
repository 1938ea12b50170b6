"""What the benchmarks share: the machine's limits, the model by flag, and one JSON line a figure."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import cpu
from zerosearch_jax import pretrained, sharding
from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import PRESETS, ModelConfig
from zerosearch_jax.text.tokenizer import byte_tokenizer

MODEL = 'smollm2-135m-instruct'
COMPILED: list[float] = []  # seconds of each program compiled by this process


@jax.monitoring.register_event_duration_secs_listener
def _count_compilations(event: str, seconds: float, **_):
    if event == '/jax/core/compile/backend_compile_duration':
        COMPILED.append(seconds)


def parser(doc: str, *, repeats: int = 3, models: Iterable[str] = (MODEL, *PRESETS)) -> argparse.ArgumentParser:
    """Flags of every benchmark."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('--model', default=MODEL, choices=models, help=f'{MODEL}: real weights; others: random ones')
    made.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    made.add_argument('--repeats', type=int, default=repeats, help='timed repeats after one that compiles')
    return made


def load_model(name: str, mesh: jax.sharding.Mesh, dtype='float32') -> pretrained.Model:
    """The real model, or a preset with random weights and the byte tokenizer."""
    if name == MODEL:
        return pretrained.load_model(name, mesh, dtype)
    cfg = PRESETS[name]
    return pretrained.Model(
        cfg, byte_tokenizer(), sharding.init(transformer.layout(cfg), jax.random.key(0), mesh, dtype)
    )


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls after one that compiles; results are waited for."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return times[1:]


def best_ms(function, *args, repeats: int = 10) -> float:
    """Milliseconds of the fastest of `repeats` calls of the jitted function, compilation excluded."""
    jitted = jax.jit(function)
    return 1e3 * min(timed(lambda: jitted(*args), repeats))


@functools.cache
def limits(dtype: str = 'float32') -> dict[str, float]:
    """What this machine can do, measured: matmul GFLOP/s of `dtype` and GB/s of reading and of copying memory."""
    gpu = jax.default_backend() != 'cpu'
    n = 8192 if gpu else 2048
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)  # some chips multiply ones faster
    seconds = best_ms(jnp.matmul, x, x, repeats=5) / 1e3
    array = jnp.ones((2**30 if gpu else 2**27,), jnp.float32)  # 4 GiB; 512 MiB
    reading = best_ms(jnp.sum, array, repeats=5) / 1e3
    return {'gflops': 2e-9 * n**3 / seconds, 'gbs': 1e-9 * array.nbytes / reading}


def forward_flops(cfg: ModelConfig, context: float, *, head: bool = True) -> float:
    """Floating-point operations of one token's forward pass that attends to `context` positions."""
    weights = transformer.num_parameters(cfg) - cfg.vocab_size * cfg.hidden_size * (1 if cfg.tie_embeddings else 2)
    head_weights = cfg.vocab_size * cfg.hidden_size if head else 0
    return 2 * (weights + head_weights) + 4 * cfg.num_layers * cfg.num_heads * cfg.head_dim * context


def cache_bytes(cfg: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values of one position in all layers."""
    return 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * jnp.dtype(dtype).itemsize


def random_tokens(cfg: ModelConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, cfg.vocab_size - 1, shape).astype(np.int32)


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {'median': statistics.median(values), 'low': min(values), 'high': max(values)}


def peak_gib() -> float:
    """The most memory that was in use: of the accelerator, else of this process."""
    memory = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return (memory or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**30


@contextlib.contextmanager
def guarded(name: str):
    """Says why a figure is missing where the device refuses it (for want of memory, say), and goes on."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        print(json.dumps({'name': name, 'not_run': str(error).splitlines()[0]}), flush=True)


def emit(name: str, **figures):
    """One JSON line: the figure's name, its values, and on what it was measured."""
    where = {
        'device': cpu() if jax.default_backend() == 'cpu' else jax.devices()[0].device_kind,
        'cores': os.cpu_count(),
        'jax': jax.__version__,
        'compiled': len(COMPILED),
        'compile_seconds': sum(COMPILED),
        'load': round(os.getloadavg()[0], 2),
        'peak_gib': peak_gib(),
    }
    print(json.dumps({'name': name, **{k: _short(v) for k, v in {**figures, **where}.items()}}), flush=True)


def _short(value):
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return float(f'{value:.4g}') if isinstance(value, float) else value
