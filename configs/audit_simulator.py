r"""What simulators write for 100 recorded searches of folds 7 and 8, which configs/sft_searches.py does not train on.

  python -m launch.audit_simulator --config configs/audit_simulator.py:prompted
  python -m launch.audit_simulator --config configs/audit_simulator.py:tuned
  python -m launch.audit_simulator --config configs/audit_simulator.py:int8
  python -m launch.audit_simulator --config configs/audit_simulator.py:oracle

prompted: the model as it comes; tuned: with the adapter of configs/sft_searches.py; int8: the same with weights of
eight bits; oracle: passages of the corpus. Needs ZEROSEARCH_DATA, see configs/sft_searches.py.

Expected: the table in docs/simulator.md (CPU). Oracle: not run.
"""

from configs.common import sections

PRESETS = {
    'prompted': {'template': 'prompted'},
    'tuned': {'adapter': 'runs/sft_searches/adapter.safetensors'},
    'int8': {'adapter': 'runs/sft_searches/adapter.safetensors', 'weights': 'int8'},
    'oracle': {'kind': 'oracle'},
}


def get_config(preset='tuned'):
    from zerosearch_jax.audit import audit

    config = sections(audit.Config)
    config.audit.update(name=preset, source='sim/search_episodes.jsonl.gz', corpus='corpus/corpus.jsonl.gz')
    config.audit.update(label='label_docs', folds=(7, 8), queries=100)
    config.simulator.update(documents=3, words=30, prompt_tokens=512, max_tokens=256, slots=32)
    config.simulator.update(PRESETS[preset])
    return config
