r"""A simulator from recorded searches: SmolLM2-135M learns to write useful or noisy encyclopedia passages on demand.

  python -m launch.sft --config configs/sft_searches.py
  python -m launch.audit_simulator --config configs/audit_simulator.py:recorded_prompted
  python -m launch.audit_simulator --config configs/audit_simulator.py:recorded

Reads searches that real policies made, with the passages that real retrievers returned, and passages that annotators
called helpful or not, both under ZEROSEARCH_DATA, and makes searches of the built-in world. Folds 0-5 are trained on,
6 is for the held-out loss, 7 and 8 are for reports. Documents that hold an answer are useful.

  python -m launch.sft --config configs/sft_searches.py:own --config.demos.source=FILE --config.demos.corpus=FILE

learns from your recorded searches instead, all of them, with the last 64 held out; their field `label` says what they
are (docs/simulator.md has the forms).

  python -m launch.sft --config configs/sft_searches.py:published

is the published setting (learning rate 1e-6, batch 2, 1,000 steps; arXiv 2505.04588, appendix F) on the published data.

Measured: two runs of this configuration in bfloat16, the first without the choice of searches by `fewest` and
`query_words`, made the shipped adapter `search_simulator` (docs/measurements.md has both commands). docs/simulator.md
shows what it writes.
"""

from configs.common import sections, simulator

SOURCES = 'world:simulator', 'sim/search_episodes.jsonl.gz', 'sim/context_useful_noisy.jsonl.gz'


def get_config(preset=''):
    from zerosearch_jax.train import sft

    if preset not in ('', 'own', 'published'):
        raise KeyError(preset)
    config = sections(sft.Config)
    if preset == 'published':
        config.mesh = (1, 8, 1)
        config.model.update(model='Qwen/Qwen2.5-3B-Instruct', dtype='bfloat16')
        config.demos.update(source='hub:Alibaba-NLP/SimulationTuning_wiki_dataset', count=0, held_out=200)
        config.optimizer.update(learning_rate=1e-6, weight_decay=0.0)
        config.sft.update(steps=1000, batch=2, evaluate_every=100, checkpoint_every=100, rows_per_micro=8)
        config.sft.update(row_length=4096, remat='full')
        return config
    config.model.lora_rank = 16
    config.demos.update(source=','.join(SOURCES), corpus='corpus/corpus.jsonl.gz', label='label_docs')
    config.demos.update(folds=(0, 1, 2, 3, 4, 5), held_out_folds=(6,), count=0, held_out=64)
    config.demos.update(fewest=2, query_words=0.5, exchanged=0.5)
    if preset == 'own':
        config.demos.update(source='searches.jsonl', corpus='passages.jsonl', label='label')
        config.demos.update(folds=(), held_out_folds=())
    config.simulator.update(simulator(), adapter='', documents=3)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=5, schedule='cosine', weight_decay=0.0)
    config.sft.update(steps=266, batch=16, evaluate_every=50, checkpoint_every=10, row_length=1024)
    return config
