r"""What simulators write for 400 searches that they were not trained on, when asked for useful and for noisy documents.

  python -m launch.audit_simulator --config configs/audit_simulator.py:world

asks the shipped adapter about held-out questions of the built-in world; it needs nothing else. The others ask for
recorded searches of folds 7 and 8, which configs/sft_searches.py does not train on; they need ZEROSEARCH_DATA:

  python -m launch.audit_simulator --config configs/audit_simulator.py:prompted
  python -m launch.audit_simulator --config configs/audit_simulator.py:tuned
  python -m launch.audit_simulator --config configs/audit_simulator.py:int8
  python -m launch.audit_simulator --config configs/audit_simulator.py:verified
  python -m launch.audit_simulator --config configs/audit_simulator.py:oracle

prompted: the model as it comes; tuned: with the adapter of configs/sft_searches.py; int8: the same with weights of
eight bits; verified: the same with documents that belie their label written again; oracle: passages of the corpus.
`--config.audit.hop=2 --config.audit.name=world_hop2` asks the world for the second step of questions that have one.

Expected: not run. docs/simulator.md has the figures of an earlier form of the simulator (CPU).
"""

from configs.common import sections

TUNED = {'adapter': 'runs/sft_searches/adapter.safetensors', 'template': 'told', 'blind_noise': True}
PRESETS = {
    'prompted': {'template': 'prompted'},
    'tuned': TUNED,
    'int8': {**TUNED, 'weights': 'int8'},
    'verified': {**TUNED, 'verify': True},
    'oracle': {'kind': 'oracle'},
    'world': {'adapter': 'smollm2_simulator', 'documents': 2, 'words': 25, 'max_tokens': 176},
}


def get_config(preset='tuned'):
    from zerosearch_jax.audit import audit

    config = sections(audit.Config)
    config.audit.update(name=preset, queries=400)
    if preset == 'world':
        config.audit.trained_folds = tuple(range(10))  # all
    else:
        config.audit.update(source='sim/search_episodes.jsonl.gz', corpus='corpus/corpus.jsonl.gz', label='label_docs')
        config.audit.update(folds=(7, 8), trained_folds=(0, 1, 2, 3, 4, 5))
    config.simulator.update(documents=3, words=30, prompt_tokens=512, max_tokens=256, slots=32)
    config.simulator.update(PRESETS[preset])
    return config
