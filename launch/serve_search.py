"""Serves a corpus with BM25 in Search-R1's protocol, for its code base and for ours.

  python -m launch.serve_search --config configs/serve_search.py
  python -m launch.serve_search --config configs/serve_search.py --config.serve.corpus=corpus.jsonl

Stop it with Ctrl-C.
"""

from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax import progress
        from zerosearch_jax.data import sources
        from zerosearch_jax.search.bm25 import BM25
        from zerosearch_jax.tools import serve_search

        cfg = serve_search.parse(_CONFIG.value).serve
        passages = sources.load_passages(cfg.corpus)
        engine = BM25.open(passages, cfg.index) if cfg.index else BM25(passages)
        with serve_search.Server(cfg, engine.search) as server:
            progress.log(f'serving {cfg.corpus} at {server.url}')
            server.serve_forever()


if __name__ == '__main__':
    from launch import common

    common.run(main)
