r"""The shipped policy, or any model, in OpenAI's chat protocol at http://127.0.0.1:8000/v1: docs/serve.md.

python -m launch.serve_model --config configs/serve_model.py
python -m launch.serve_model --config configs/serve_model.py --config.policy.adapter=runs/quickstart
"""

from configs.common import no_preset, sections


def get_config(preset=''):
    from zerosearch_jax.tools import serve_model

    no_preset(preset)
    config = sections(serve_model.Config)
    config.policy.adapter = 'smollm2_policy'
    return config
