r"""Compares prompting methods and trained policies on the built-in questions, or on other questions by flags.

  python -m launch.evaluate --config configs/eval.py
  python -m launch.evaluate --config configs/eval.py --config.evaluation.methods=agent,zerosearch \
      --config.trained.zerosearch=runs/quickstart/adapter.safetensors

Measured results: docs/evaluation.md.
"""

from configs.common import no_preset, sections, simulator


def get_config(preset=''):
    from zerosearch_jax.evaluate import evaluation

    no_preset(preset)
    config = sections(evaluation.Config)
    config.evaluation.update(questions=64, documents=3)
    config.simulator.update(simulator(), documents=3, max_tokens=256, slots=16)
    config.rollout.update(max_turns=3, turn_tokens=80, observation_tokens=320)
    config.rollout.update(prompt_tokens=256, response_tokens=1280, slots=16)
    return config
