"""Serves a model with OpenAI's chat protocol, for any OpenAI client: docs/serve.md.

  python -m launch.serve_model --config configs/serve_model.py
  python -m launch.serve_model --config configs/serve_model.py --config.policy.adapter=runs/quickstart

Stop it with Ctrl-C.
"""

from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: a file of configs/.', lock_config=True)


def main(_):
    from launch import common

    with common.one_line_errors():
        from zerosearch_jax import progress
        from zerosearch_jax.tools import serve_model

        cfg = serve_model.parse(_CONFIG.value)
        common.set_up_jax()
        with serve_model.open_server(cfg) as server:
            progress.log(f'serving {server.worker.name} at {server.url}/v1')
            server.run()


if __name__ == '__main__':
    from launch import common

    common.run(main)
