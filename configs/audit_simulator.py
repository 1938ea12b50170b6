r"""What simulators write for 400 searches that they were not trained on, when asked for useful and for noisy documents.

  python -m launch.audit_simulator --config configs/audit_simulator.py:world
  python -m launch.audit_simulator --config configs/audit_simulator.py:world_hop

asks the shipped adapter, of configs/sft_searches.py, about held-out questions of the built-in world; it needs nothing
else. The others ask for recorded searches of folds 7 and 8, which it was not trained on; they need ZEROSEARCH_DATA:

  python -m launch.audit_simulator --config configs/audit_simulator.py:prompted
  python -m launch.audit_simulator --config configs/audit_simulator.py:tuned
  python -m launch.audit_simulator --config configs/audit_simulator.py:int8
  python -m launch.audit_simulator --config configs/audit_simulator.py:verified
  python -m launch.audit_simulator --config configs/audit_simulator.py:oracle

prompted: the model as it comes; tuned: the shipped adapter; int8: the same with weights of eight bits; verified: the
same with documents sampled again that are not as labelled; oracle: passages of the corpus. Requests of `world` contain
the question's answer, as in the quickstart; those of `world_hop` that of the hop that the query asks for.
`--config.audit.hop=2 --config.audit.name=second` asks the world for the second step of questions that have one.

Measured: docs/simulator.md (CPU).
"""

from configs.common import sections, simulator

PRESETS = {
    'prompted': {'template': 'prompted'},
    'tuned': simulator(),
    'int8': {**simulator(), 'weights': 'int8'},
    'verified': {**simulator(), 'verify': True},
    'oracle': {'kind': 'oracle'},
    'world': simulator(),
    'world_hop': {**simulator(), 'tell': 'hop'},
}


def get_config(preset='tuned'):
    from zerosearch_jax.audit import audit

    config = sections(audit.Config)
    config.audit.update(name=preset, queries=400)
    if preset.startswith('world'):
        config.audit.trained_folds = (0, 1, 2, 3, 4, 5)
    else:
        config.audit.update(source='sim/search_episodes.jsonl.gz', corpus='corpus/corpus.jsonl.gz', label='label_docs')
        config.audit.update(folds=(7, 8), trained_folds=(0, 1, 2, 3, 4, 5))
    config.simulator.update(documents=3, words=30, prompt_tokens=512, max_tokens=256, slots=32)
    config.simulator.update(PRESETS[preset])
    return config
