r"""The warm start of a random model of 150,000 weights on the toy task: it searches as often as it guesses.

python -m launch.sft --config configs/toy_sft.py
"""

from configs.common import no_preset, sections


def get_config(preset=''):
    from zerosearch_jax.train import sft

    no_preset(preset)
    config = sections(sft.Config)
    config.model.model = 'tiny'
    config.demos.update(source='toy:policy', count=180, held_out=12, guesses=1)
    config.simulator.documents = 2
    config.rollout.update(prompt_tokens=640, response_tokens=320, observation_tokens=128)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=20, schedule='cosine', weight_decay=0.0)
    config.sft.update(steps=800, batch=16, evaluate_every=50, checkpoint_every=100, row_length=1024, rows_per_micro=4)
    return config
