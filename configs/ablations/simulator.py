r"""Who plays the engine. Three seeds each. Not run yet.

python -m launch.sweep --config configs/ablations/simulator.py
"""

from configs.studies import study

VARIANTS = {
    'fine_tuned': {},
    'prompted': {'simulator': {'adapter': '', 'template': 'prompted', 'prompt_tokens': 448}},
    'verified': {'simulator': {'verify': True}},
    'told_noise': {'simulator': {'blind_noise': False}},
    'noise_per_document': {'simulator': {'noise_per': 'document'}},
    'itself': {'simulator': {'kind': 'self', 'adapter': '', 'template': 'prompted', 'prompt_tokens': 448}},  # SSRL
    'int8': {'simulator': {'weights': 'int8'}},
    'oracle': {'simulator': {'kind': 'oracle'}},
}


def get_config(preset=''):
    return study(VARIANTS, preset)
