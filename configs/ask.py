r"""Questions to a policy, by default the shipped one, with BM25 over the built-in corpus: docs/ask.md.

  python -m launch.ask --config configs/ask.py "What is the capital of the country where Lyon is?"
  python -m launch.ask --checkpoint runs/quickstart --config.engine.kind=search_r1 --config.engine.url=http://… "…"

launch.ask uses this file if no --config is given.
"""

from configs import eval as evaluation
from configs.common import no_preset


def get_config(preset=''):
    no_preset(preset)
    config = evaluation.get_config()
    config.policy.adapter = 'smollm2_policy'
    config.evaluation.documents = 0  # as many as in its training
    config.rollout.update(slots=1, decode_steps=4)  # one question at a time, shown every four tokens
    config.simulator.update(slots=1, documents=2)  # two, as in the training of the shipped policy
    return config
