r"""Who plays the engine. Three seeds each. Expected: not run.

python -m launch.sweep --config configs/ablations/simulator.py
"""

from configs.studies import study

VARIANTS = {
    'fine_tuned': {},
    'prompted': {'simulator': {'adapter': '', 'template': 'prompted', 'prompt_tokens': 448}},
    'blind_noise': {'simulator': {'blind_noise': True}},
    'noise_per_document': {'simulator': {'noise_per': 'document'}},
    'int8': {'simulator': {'weights': 'int8'}},
    'oracle': {'simulator': {'kind': 'oracle'}},
}


def get_config(preset=''):
    return study(VARIANTS, preset)
