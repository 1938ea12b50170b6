r"""What simulators write for 400 searches that they were not trained on, when asked for useful and for noisy documents.

  python -m launch.audit_simulator --config configs/audit_simulator.py:world
  python -m launch.audit_simulator --config configs/audit_simulator.py:recorded

`world` asks the shipped adapter, of configs/sft_searches.py, about held-out questions of the built-in world, and needs
nothing else. `recorded` asks it for recorded searches of folds 7 and 8, and needs ZEROSEARCH_DATA. `world_VARIANT` and
`recorded_VARIANT` change one thing:

  int8       weights of eight bits
  verified   documents that are not as labelled are sampled again
  hop        requests contain the answer of the hop that the query asks for (recorded searches have no hops)
  prompted   the model without adapter
  oracle     no model: passages of the corpus

`--config.audit.hop=2 --config.audit.name=second` asks the world for the second step of questions that have one.

Measured: docs/simulator.md (CPU).
"""

from configs.common import sections, simulator

SOURCES = {
    'world': {},
    'recorded': {
        'source': 'sim/search_episodes.jsonl.gz',
        'corpus': 'corpus/corpus.jsonl.gz',
        'label': 'label_docs',
        'folds': (7, 8),
    },
}
VARIANTS = {
    '': simulator(),
    'int8': {**simulator(), 'weights': 'int8'},
    'verified': {**simulator(), 'verify': True},
    'hop': {**simulator(), 'tell': 'hop'},
    'prompted': {'template': 'prompted'},
    'oracle': {'kind': 'oracle'},
}


def get_config(preset='recorded'):
    from zerosearch_jax.audit import audit

    source, _, variant = preset.partition('_')
    if source not in SOURCES or variant not in VARIANTS or preset == 'recorded_hop':
        raise KeyError(preset)
    config = sections(audit.Config)
    config.audit.update(SOURCES[source], name=preset, queries=400, trained_folds=(0, 1, 2, 3, 4, 5))
    config.simulator.update(documents=3, words=30, prompt_tokens=512, max_tokens=256, slots=32)
    config.simulator.update(VARIANTS[variant])
    return config
