r"""Qwen2.5-7B with a 14B simulator: an experiment of ZeroSearch (arXiv 2505.04588) in its `fixed` form.

Not run yet.

  python -m launch.train --config configs/qwen2_5_7b.py
  python -m launch.train --config configs/qwen2_5_7b.py:instruct
  python -m launch.train --config configs/qwen2_5_7b.py:paper
  python -m launch.train --config configs/qwen2_5_7b.py:paper_instruct

Evaluations ask a retriever of Search-R1's protocol over Wikipedia, which must answer at config.engine.url
(docs/evaluation.md, "Engines"); with --config.evaluation.questions=0 there are none.

`paper` has the published system's mistakes, lengths and prompt format (docs/differences.md). Other words of a preset,
with or without `instruct` and `paper`: `ppo`; `searchr1`, trained with config.engine; `r1`, trained without search.
"""

from configs import common


def get_config(preset='base'):
    return common.experiment(preset, 'Qwen/Qwen2.5-7B', start=0.0, end=0.75)  # the paper's appendix F
