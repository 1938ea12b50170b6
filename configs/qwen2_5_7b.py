r"""Qwen2.5-7B with a 14B simulator: an experiment of ZeroSearch (arXiv 2505.04588) in its `fixed` form.

Expected: not run.

  python -m launch.train --config configs/qwen2_5_7b.py
  python -m launch.train --config configs/qwen2_5_7b.py:instruct
  python -m launch.train --config configs/qwen2_5_7b.py:paper

Evaluations ask a retriever of Search-R1's protocol over Wikipedia, which must answer at config.engine.url
(docs/evaluation.md, "Engines"); with --config.evaluation.questions=0 there are none.

`paper` is the base model with the published system's mistakes (configs/paper_v2.py).
"""

from configs import common


def get_config(preset='base'):
    if preset == 'paper':
        return common.paper(get_config('base'))
    config = common.published()
    config.policy.model = {
        'base': 'Qwen/Qwen2.5-7B',
        'instruct': 'Qwen/Qwen2.5-7B-Instruct',
    }[preset]
    config.rollout.prompt_format = {'base': 'raw', 'instruct': 'chat'}[preset]
    config.curriculum.update(start=0.0, end=0.75)  # the paper's appendix F
    return config
