r"""How many searches are allowed. Three seeds each. Not run yet.

python -m launch.sweep --config configs/ablations/turns.py
"""

from configs.studies import study

VARIANTS = {
    '3_turns': {},
    '1_turn': {'rollout': {'max_turns': 1}},
    '2_turns': {'rollout': {'max_turns': 2}},
    '4_turns': {'rollout': {'max_turns': 4, 'response_tokens': 640}, 'rl': {'row_length': 896}},
}


def get_config(preset=''):
    return study(VARIANTS, preset)
