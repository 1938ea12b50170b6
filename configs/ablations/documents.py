r"""How many documents a search returns. Three seeds each. Not run yet.

python -m launch.sweep --config configs/ablations/documents.py
"""

from configs.studies import study

VARIANTS = {
    '2_documents': {},
    '1_document': {'simulator': {'documents': 1}, 'evaluation': {'documents': 1}},
    '3_documents': {
        'simulator': {'documents': 3, 'max_tokens': 256},
        'evaluation': {'documents': 3},
        'rollout': {'observation_tokens': 256, 'response_tokens': 640},
        'rl': {'row_length': 896},
    },
}


def get_config(preset=''):
    return study(VARIANTS, preset)
