r"""Llama-3.2-3B with a 14B simulator: an experiment of ZeroSearch (arXiv 2505.04588) in its `fixed` form.

Not run yet.

  python -m launch.train --config configs/llama3_2_3b.py
  python -m launch.train --config configs/llama3_2_3b.py:instruct
  python -m launch.train --config configs/llama3_2_3b.py:paper
  python -m launch.train --config configs/llama3_2_3b.py:paper_instruct

Evaluations ask a retriever of Search-R1's protocol over Wikipedia, which must answer at config.engine.url
(docs/evaluation.md, "Engines"); with --config.evaluation.questions=0 there are none.

`paper` has the published system's mistakes, lengths and prompt format (docs/differences.md). Other words of a preset,
with or without `instruct` and `paper`: `ppo`; `searchr1`, trained with config.engine; `r1`, trained without search.
"""

from configs import common


def get_config(preset='base'):
    return common.experiment(preset, 'meta-llama/Llama-3.2-3B', start=0.25, end=0.5)  # the paper's appendix F
