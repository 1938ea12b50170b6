r"""BM25 over the built-in world in Search-R1's protocol, at http://127.0.0.1:8000/retrieve.

python -m launch.serve_search --config configs/serve_search.py
"""

import dataclasses

from ml_collections import ConfigDict

from configs.common import no_preset


def get_config(preset=''):
    from zerosearch_jax.tools.serve_search import ServeConfig

    no_preset(preset)
    return ConfigDict({'serve': dataclasses.asdict(ServeConfig())})
