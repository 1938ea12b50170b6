"""Says whether a run of reinforcement learning fits given hardware, how long it takes and what it costs, beforehand.

  python -m launch.plan --config configs/qwen2_5_7b.py --hardware=a100-80gb:8
  python -m launch.plan --config configs/qwen2_5_3b.py --hardware=v5e:8x8 --suggest
  python -m launch.plan --config configs/qwen2_5_3b.py --hardware=h100-80gb:4 --paper

The run's programs are compiled by the target's own compiler where it is installed (pip install '.[tpu]' or '.[cuda]';
no TPU or GPU is needed), else by the CPU's for as many devices. Nothing is downloaded and nothing runs.
"""

import math
import os

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)
_HARDWARE = flags.DEFINE_string('hardware', 'a100-80gb:8', 'CHIP:COUNT or CHIP:TOPOLOGY, e.g. h100-80gb:4, v5p:2x2x2.')
_SUGGEST = flags.DEFINE_bool(
    'suggest', False, 'Try other mesh shapes and micro-batches; the fastest that fits is last.'
)
_PAPER = flags.DEFINE_bool('paper', False, 'Rows of docs/plans.md: three policies x three simulators on this hardware.')
_SEARCHES = flags.DEFINE_float('searches', None, 'Searches of a trajectory; by default 1.')
_SAMPLED = flags.DEFINE_float('sampled', None, 'Tokens that the policy samples in a trajectory; by default 400.')
_WRITTEN = flags.DEFINE_float('written', None, 'Tokens that the simulator writes a search; by default all that it may.')


def main(_):
    from launch import common

    with common.one_line_errors():
        set_environment(_HARDWARE.value)
        from zerosearch_jax.plan import hardware, planner, report, table
        from zerosearch_jax.train import config

        target = hardware.parse(_HARDWARE.value)
        cfg = config.parse(_CONFIG.value)
        work = planner.Workload.of(cfg, searches=_SEARCHES.value, sampled=_SAMPLED.value, written=_WRITTEN.value)
        if _PAPER.value:
            print(table.table(cfg, target, work))
            return
        cfg, given = planner.fitted(cfg, target), cfg
        if cfg != given:
            print(f'mesh {given.mesh} does not fill {target}; planned with {planner.options(cfg, given)}\n')
        where = (target, *hardware.devices(target))
        if not _SUGGEST.value:
            print(report.table(planner.plan(cfg, *where, work), target, cfg, work))
            return
        found = []
        for changed, made in planner.suggest(cfg, *where, work):
            seconds, options = planner.expected_seconds(made), planner.options(changed, cfg)
            print(f'{seconds:.1f} s a step, {made.peak / 2**30:.1f} GiB: {options}')
            found.append((seconds, options))
        print(
            f'The fastest: {min(found)[1]}' if found else 'Nothing that was tried fits; see the plan without --suggest.'
        )


def set_environment(text: str) -> None:
    """As many CPU devices as are asked for, and no search for a real accelerator; before jax looks for devices."""
    import jax

    from zerosearch_jax.plan import hardware

    sizes = [int(part) for part in text.partition(':')[2].split('x') if part.isdigit()]
    count = math.prod(sizes)
    os.environ['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count} --xla_gpu_autotune_level=0'
    )
    os.environ.update(JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1', **hardware.TPU_ENVIRONMENT)
    jax.config.update('jax_platforms', 'cpu')


if __name__ == '__main__':
    from launch import common

    common.run(main)
