"""Serves a corpus with BM25, or a simulator, with Search-R1's protocol, for Search-R1 and for us: docs/serve.md.

  python -m launch.serve_search --config configs/serve_search.py
  python -m launch.serve_search --config configs/serve_search.py --config.serve.corpus=corpus.jsonl
  python -m launch.serve_search --config configs/serve_search.py:simulator

Stop it with Ctrl-C.
"""

from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)


def main(_):
    from launch import common

    with common.one_line_errors():
        import jax

        from zerosearch_jax import progress
        from zerosearch_jax.tools import serve_search

        cfg = serve_search.parse(_CONFIG.value)
        if cfg.simulator.kind != 'model':  # leaves the accelerators to a training on the same machine
            jax.config.update('jax_platforms', 'cpu')
        if cfg.simulator.kind != 'engine':
            common.set_up_jax()
        with serve_search.open_server(cfg) as server:
            what = cfg.serve.corpus if server.search else f'simulator {cfg.simulator.model} ({cfg.simulator.kind})'
            progress.log(f'serving {what} at {server.url}')
            server.run()


if __name__ == '__main__':
    from launch import common

    common.run(main)
