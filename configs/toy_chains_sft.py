r"""The warm start of the chains: a random model that follows a chain, or guesses before any hop of it.

python -m launch.sft --config configs/toy_chains_sft.py
"""

from configs import toy_sft
from configs.common import no_preset


def get_config(preset=''):
    no_preset(preset)
    config = toy_sft.get_config()
    # of 2,556 questions one episode each, and one that guesses before every hop
    config.demos.update(source='toy_chains:policy', count=7600, held_out=68, guesses=3, late_guesses=True)
    config.rollout.update(max_turns=4, turn_tokens=128, prompt_tokens=448, response_tokens=896)
    config.sft.update(steps=1600, row_length=1344)
    return config
