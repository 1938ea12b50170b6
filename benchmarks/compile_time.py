"""Compilation of the update by depth: the layers are scanned, so that it must not grow with their number.

python -m benchmarks.compile_time
"""

import dataclasses
import time

import jax
import jax.numpy as jnp

from benchmarks import common
from zerosearch_jax import sharding
from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.text.trajectory import pack

DEPTHS = (4, 28)


def main():
    args = common.parser(__doc__).parse_args()
    preset = PRESETS[args.model.removesuffix('-instruct')]
    found = {n: min(compilation(dataclasses.replace(preset, num_layers=n), args) for _ in range(2)) for n in DEPTHS}
    ratio = found[DEPTHS[1]] / found[DEPTHS[0]]
    common.emit(f'compilation of the update, {DEPTHS[1]} layers', seconds=found[DEPTHS[1]], to_shallow=ratio)


def compilation(cfg, args) -> float:
    """Seconds, the cache of compiled programs aside."""
    mesh, tx = sharding.make_mesh(), state.optimizer(state.OptimizerConfig(), 100)
    layout = transformer.layout(cfg)
    shardings = state.state_shardings(layout, tx, mesh)
    update = step.make_update(cfg, tx, shardings, losses.LossConfig(kl=0.0), losses.Compute(args.dtype))
    params = sharding.abstract(layout, mesh)
    current = state.TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(tx.init, params))
    with jax.set_mesh(mesh):
        lowered = update.lower(current, {}, pack([], [], row_length=512, rows_per_micro=1))
        began = time.perf_counter()
        lowered.compile()
        return time.perf_counter() - began


if __name__ == '__main__':
    main()
