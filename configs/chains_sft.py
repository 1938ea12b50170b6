r"""The warm start of configs/ablations/chains.py: SmolLM2-135M follows a chain of searches, or guesses before any hop.

  python -m launch.sft --config configs/chains_sft.py

It continues the shipped policy, which searches, but seldom reads the result of a second search right. There are three
episodes of a question that needs two searches: one follows the chain, one guesses at once, one guesses after the first
search. Products are in bfloat16: some CPUs compute these faster, if asked (docs/measurements.md).

Measured: docs/second_search.md.
"""

from configs import sft
from configs.common import no_preset


def get_config(preset=''):
    no_preset(preset)
    config = sft.get_config('policy')
    config.model.update(adapter='smollm2_policy', dtype='bfloat16')
    config.demos.update(folds=(0, 1, 2, 3), count=0, guesses=2, late_guesses=True)
    config.rollout.update(prompt_tokens=144, response_tokens=512, turn_tokens=80, max_turns=3)
    config.optimizer.update(learning_rate=5e-4, schedule='cosine')
    config.sft.update(steps=96, evaluate_every=16, checkpoint_every=16, row_length=704)
    return config
