r"""BM25 over the built-in world, or a simulator, in Search-R1's protocol at http://127.0.0.1:8000/retrieve.

python -m launch.serve_search --config configs/serve_search.py
python -m launch.serve_search --config configs/serve_search.py:simulator
"""

from configs.common import sections, simulator

PRESETS = {
    '': {'simulator': {'kind': 'engine'}},
    # the shipped one, without noise unless a request says so
    'simulator': {'simulator': {**simulator(), 'prompt_tokens': 512, 'max_tokens': 256}},
}


def get_config(preset=''):
    from zerosearch_jax.tools import serve_search

    chosen = PRESETS[preset]
    config = sections(serve_search.Config)
    config.curriculum.kind = 'constant'
    for section, values in chosen.items():
        config[section].update(values)
    return config
