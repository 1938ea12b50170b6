r"""Chains of one, two and three searches on a laptop: each search returns what the policy needs for its next query.

  python -m launch.sft --config configs/toy_chains_sft.py
  python -m launch.train --config configs/toy_hops.py

The warm start follows a chain or guesses before any hop of it. Training searches with BM25; evaluation asks the 144
held-out questions with it, 48 of each number of hops. For studies: configs/ablations/toy_chains.py.
"""

from configs import toy
from configs.common import no_preset


def get_config(preset=''):
    no_preset(preset)
    config = toy.get_config()
    config.policy.model = 'runs/toy_chains_sft/model'
    config.data.update(train='toy_chains', test='toy_chains', corpus='toy_chains')
    config.simulator.kind = 'engine'
    config.rollout.update(max_turns=4, prompt_tokens=448, response_tokens=896)
    config.rl.row_length = 1344
    config.evaluation.update(questions=144, before=False)
    return config
