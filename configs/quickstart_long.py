r"""The quickstart with more steps and 256 held-out questions, run once a seed. Expected: not run.

python -m launch.train --config configs/quickstart_long.py --config.seed=0 --workdir runs/quickstart_long_0
"""

from configs import quickstart
from configs.common import no_preset


def get_config(preset=''):
    no_preset(preset)
    config = quickstart.get_config()
    config.rl.steps = 48
    config.evaluation.questions = 256
    config.run.checkpoint_every = 2
    return config
