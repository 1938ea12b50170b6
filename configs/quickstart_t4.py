r"""The quickstart on a T4, the GPU that Colab lends: Qwen2.5-0.5B-Instruct learns to search, in float32.

  python -m launch.train --config configs/quickstart_t4.py

A T4 has no bfloat16, and 15 GiB. The policy starts from the model as it is, without demonstrations; the simulator is
the quickstart's, SmolLM2-135M. Not run yet.
"""

from configs import quickstart
from configs.common import no_preset


def get_config(preset=''):
    no_preset(preset)
    config = quickstart.get_config()
    config.policy.update(model='Qwen/Qwen2.5-0.5B-Instruct', adapter='', lora_rank=16)
    config.simulator.tell = 'hop'  # as in quickstart_gpu
    config.rollout.update(
        questions=8, group=8, temperature=1.0, turn_tokens=128, prompt_tokens=256, response_tokens=768
    )
    config.rl.update(steps=40, row_length=1024, chunk=512)
    config.optimizer.learning_rate = 2e-5
    config.run.checkpoint_every = 4
    return config
