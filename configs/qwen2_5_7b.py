r"""Qwen2.5-7B with a 14B simulator: an experiment of ZeroSearch (arXiv 2505.04588) in its `fixed` form.

Expected: not run.

  python -m launch.train --config configs/qwen2_5_7b.py
  python -m launch.train --config configs/qwen2_5_7b.py:instruct
"""

from configs import common


def get_config(preset='base'):
    config = common.published()
    config.policy.model = {
        'base': 'Qwen/Qwen2.5-7B',
        'instruct': 'Qwen/Qwen2.5-7B-Instruct',
    }[preset]
    config.rollout.prompt_format = {'base': 'raw', 'instruct': 'chat'}[preset]
    config.curriculum.update(start=0.0, end=0.75)  # the paper's appendix F
    return config
