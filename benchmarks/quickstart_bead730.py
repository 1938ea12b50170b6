"""The quickstart as it was at commit bead730, for that commit and for later ones: benchmarks.old_new --config."""

from configs.common import base


def get_config():
    config = base()
    config.policy.update(adapter='smollm2_policy', lora_rank=8)
    config.simulator.update(adapter='smollm2_simulator', documents=2, words=25, max_tokens=176)
    config.simulator.template = 'tuned'  # the default then
    config.curriculum.update(start=0.0, end=0.5)
    config.rollout.update(questions=4, group=4, max_turns=3, turn_tokens=80, observation_tokens=176)
    config.rollout.update(prompt_tokens=256, response_tokens=512)
    config.rl.update(steps=3, algorithm='grpo', aggregate='token', row_length=768, kl=0.001)
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.0)
    config.evaluation.update(questions=64, documents=2)
    return config
