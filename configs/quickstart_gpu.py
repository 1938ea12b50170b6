r"""The quickstart on one GPU, in bfloat16: 32 questions x 8 samples a step, 20 steps, 256 held-out questions.

  python -m launch.train --config configs/quickstart_gpu.py

On a machine with `pip install -e '.[cuda]'`; `launch.plan … --hardware=h100-80gb:1` says what it takes.
Expected: not run in this form; an earlier one, from another start: configs/ablations/engine.py.
"""

from configs import quickstart
from configs.common import no_preset


def get_config(preset=''):
    no_preset(preset)
    config = quickstart.get_config()
    config.policy.dtype = config.simulator.dtype = 'bfloat16'
    config.simulator.tell = 'hop'  # with 'final' a policy gave up the second search: docs/second_search.md
    config.rollout.update(questions=32, group=8, temperature=0.8)
    config.rl.update(steps=20, row_length=2048, rows_per_micro=2, drop_zero_variance=True)
    config.optimizer.update(learning_rate=5e-5, warmup_steps=2)
    config.evaluation.questions = 256
    config.run.checkpoint_every = 4
    return config
