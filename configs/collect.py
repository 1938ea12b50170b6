r"""Records what a policy finds with BM25, labelled useful or noisy, as data for a simulator.

  python -m launch.collect --config configs/collect.py
  python -m launch.collect --config configs/collect.py:judge

Without a preset a search is useful if its episode's answer was right (ZeroSearch v1); with `judge` if a judge says that
the documents suffice to answer the query (v2). The judge is a model of ours or, with --config.judge.kind=endpoint
--config.judge.model=NAME --config.endpoint.url=http://…/v1, a served one.

Not run yet.
"""

from configs.common import sections, simulator


def get_config(preset=''):
    from zerosearch_jax.audit import collect

    if preset not in ('', 'judge'):
        raise KeyError(preset)
    config = sections(collect.Config)
    config.collect.label = preset or 'answer'
    config.policy.adapter = 'smollm2_policy'
    config.simulator.update(simulator(), adapter='', documents=2)
    config.collect.documents = 2
    config.rollout.update(group=1, max_turns=3, turn_tokens=80, observation_tokens=176)
    config.rollout.update(prompt_tokens=256, response_tokens=512, slots=16)
    return config
