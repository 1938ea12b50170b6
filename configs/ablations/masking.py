r"""Whether documents carry gradient. Three seeds each. Not run yet.

python -m launch.sweep --config configs/ablations/masking.py
"""

from configs.studies import study

VARIANTS = {
    'masked': {},
    'not_masked': {'rl': {'observations': 'policy'}},
    'likelihood': {'rl': {'observations': 'likelihood'}},
}


def get_config(preset=''):
    return study(VARIANTS, preset)
