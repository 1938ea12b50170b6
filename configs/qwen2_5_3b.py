r"""Qwen2.5-3B with a 14B simulator: an experiment of ZeroSearch (arXiv 2505.04588) in its `fixed` form.

Expected: not run.

  python -m launch.train --config configs/qwen2_5_3b.py
  python -m launch.train --config configs/qwen2_5_3b.py:instruct
"""

from configs import common


def get_config(preset='base'):
    config = common.published()
    config.policy.model = {
        'base': 'Qwen/Qwen2.5-3B',
        'instruct': 'Qwen/Qwen2.5-3B-Instruct',
    }[preset]
    config.rollout.prompt_format = {'base': 'raw', 'instruct': 'chat'}[preset]
    config.curriculum.update(start=0.0, end=0.25)  # the paper's appendix F
    return config
