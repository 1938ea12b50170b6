"""Plans a run of reinforcement learning: whether it fits the hardware, how long it takes and what it costs.

  python -m launch.plan --config configs/qwen2_5_7b.py --hardware=a100-80gb:8
  python -m launch.plan --config configs/qwen2_5_3b.py --hardware=v5e:8x8 --suggest

The run's programs are compiled by the target's own compiler if it is installed (pip install '.[tpu]' or '.[cuda]'; no
TPU or GPU is needed), otherwise by the CPU's for as many devices. Nothing is downloaded and nothing runs.
"""

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)
_HARDWARE = flags.DEFINE_string('hardware', 'a100-80gb:8', 'CHIP:COUNT or CHIP:TOPOLOGY, e.g. h100-80gb:4, v5p:2x2x2.')
_SUGGEST = flags.DEFINE_bool(
    'suggest', False, 'Try other mesh shapes and micro-batches; the fastest that fits is last.'
)
_SEARCHES = flags.DEFINE_float('searches', None, 'Assumed searches of a trajectory; default: 1.')
_SAMPLED = flags.DEFINE_float('sampled', None, 'Assumed tokens that the policy samples in a trajectory; default: 400.')
_WRITTEN = flags.DEFINE_float('written', None, 'Assumed simulator tokens for a search; default: simulator.max_tokens.')


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax.plan import hardware, planner, report
        from zerosearch_jax.train import config

        hardware.prepare(_HARDWARE.value)
        target = hardware.parse(_HARDWARE.value)
        cfg = config.parse(_CONFIG.value)
        work = planner.Workload.of(cfg, searches=_SEARCHES.value, sampled=_SAMPLED.value, written=_WRITTEN.value)
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
        print(f'The fastest: {min(found)[1]}' if found else 'None of the tried meshes fits; plan without --suggest.')


if __name__ == '__main__':
    from launch import common

    common.run(main)
