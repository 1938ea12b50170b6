r"""A random model of 150,000 weights in both roles: exercises every part in seconds, learns nothing.

python -m launch.train --config configs/tiny.py --workdir /tmp/tiny
"""

from configs.common import base, no_preset


def get_config(preset=''):
    no_preset(preset)
    config = base()
    config.policy.model = config.simulator.model = 'tiny'
    config.policy.lora_rank = 4
    config.rollout.update(questions=2, group=2, max_turns=1, turn_tokens=24, observation_tokens=64, slots=4)
    config.rollout.update(prompt_tokens=768, response_tokens=160, decode_steps=8)
    config.simulator.update(template='tuned', prompt_tokens=768, max_tokens=24, attempts=1, slots=4)
    config.rl.update(steps=3, row_length=1024)
    config.optimizer.learning_rate = 1e-3
    config.evaluation.questions = 4
    return config
