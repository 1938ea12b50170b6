r"""The published experiment with its mistakes: Qwen2.5-3B, REINFORCE, arXiv 2505.04588 v2. Expected: not run.

  python -m launch.train --config configs/paper_v2.py

What differs from the `fixed` form is the table `PAPER` of configs/common.py, one switch a line, and these settings of
the published scripts: two turns, 500 tokens a document list, mini-batches of 256, 192 steps of warm-up. Evaluations as
configs/qwen2_5_3b.py says.
"""

from configs import common, qwen2_5_3b


def get_config(preset=''):
    common.no_preset(preset)
    config = common.paper(qwen2_5_3b.get_config('base'))
    config.rollout.update(max_turns=2, observation_tokens=500)
    return config
