r"""Where every arm of configs/miniature/claim.py starts: a policy that can search and mostly guesses, and a simulator.

  python -m launch.sft --config configs/miniature/warm_start.py:policy --workdir runs/miniature_policy
  python -m launch.sft --config configs/miniature/warm_start.py:simulator --workdir runs/miniature_simulator

The training questions of the built-in world are in ten folds. The policy learns from folds 0 and 1, the simulator from
folds 2 to 4, and reinforcement learning asks those of folds 5 to 9; held-out questions are about other countries.
Both adapters ship with the project. Measured: docs/claim.md.
"""

from configs import sft

FOLDS = {'policy': (0, 1), 'simulator': (2, 3, 4), 'reinforcement': (5, 6, 7, 8, 9)}
LEARNING = {
    'policy': {
        'demos': {'guesses': 2},  # two of three demonstrations answer at once, and wrongly
        'optimizer': {'schedule': 'cosine'},
        'sft': {'steps': 64, 'evaluate_every': 16, 'checkpoint_every': 16},
    },
    'simulator': {'simulator': {'template': 'tuned', 'blind_noise': False, 'words': 25}, 'sft': {'steps': 120}},
}


def get_config(preset='policy'):
    config = sft.get_config(preset)
    config.demos.update(folds=FOLDS[preset], count=0)
    for section, values in LEARNING[preset].items():
        config[section].update(values)
    return config
