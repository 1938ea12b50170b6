r"""Llama-3.2-3B with a 14B simulator: an experiment of ZeroSearch (arXiv 2505.04588) in its `fixed` form.

Expected: not run.

  python -m launch.train --config configs/llama3_2_3b.py
  python -m launch.train --config configs/llama3_2_3b.py:instruct
  python -m launch.train --config configs/llama3_2_3b.py:paper

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
        'base': 'meta-llama/Llama-3.2-3B',
        'instruct': 'meta-llama/Llama-3.2-3B-Instruct',
    }[preset]
    config.rollout.prompt_format = {'base': 'raw', 'instruct': 'chat'}[preset]
    config.curriculum.update(start=0.25, end=0.5)  # the paper's appendix F
    return config
