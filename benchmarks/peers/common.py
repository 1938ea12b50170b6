"""What the programs of the peers share. Only the standard library: each runs in an environment without ours."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import resource
import statistics
import time
from collections.abc import Callable

STOPS = {'limit': 'to the limit', 'known': 'stops known'}  # where turns of transformers_search end; what is said of it


def parser(doc: str) -> argparse.ArgumentParser:
    """Flags of every peer's program."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('--weights', type=pathlib.Path, required=True, help='directory of benchmarks.peers.export')
    made.add_argument('--repeats', type=int, default=2, help='timed repeats after a warm-up')
    return made


def seconds(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest, with four digits."""
    found = {'median': statistics.median(values), 'low': min(values), 'high': max(values)}
    return {name: float(f'{value:.4g}') for name, value in found.items()}


def ratio(name: str, unit: str, ours: list[float], peer: list[float]) -> dict:
    """The line of a comparison: above 1 ours is better. A rate ('.../s') is better if high, anything else if low."""
    pairs = zip(ours, peer, strict=True)
    found = spread([a / b if unit.endswith('/s') else b / a for a, b in pairs])
    return {'name': name, 'ours': spread(ours), 'peer': spread(peer), 'ratio': found, 'unit': unit, 'rounds': len(ours)}


def emit_decode(batch: int, new: int, whole: list[float], prefill: list[float], *packages: str, **figures):
    """The line of a generation, from seconds of whole calls and of calls that write one token."""
    alone = statistics.median(prefill)
    emit(
        f'decode, batch {batch}',
        *packages,
        seconds=spread(whole),
        with_prefill=spread([batch * new / s for s in whole]),
        tokens_per_second=spread([batch * (new - 1) / (s - alone) for s in whole]),
        prefill_seconds=spread(prefill),
        **figures,
    )


def emit(name: str, *packages: str, **figures):
    """One JSON line with the fields of our own benchmarks, and the versions of the packages."""
    where = {
        'versions': {package: importlib.metadata.version(package) for package in packages},
        'cores': os.cpu_count(),
        'load': round(os.getloadavg()[0], 2),
        'peak_gib': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print('\n' + json.dumps({'name': name, **figures, **where}), flush=True)
