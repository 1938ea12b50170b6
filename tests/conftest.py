"""Test set-up: eight fake CPU devices, set before jax is imported; JAX_PLATFORMS=cuda for those of a GPU."""

import os
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8 --xla_gpu_autotune_level=0'
if os.environ['JAX_PLATFORMS'] == 'cpu':  # compiled without effort: most of the time goes into tiny models' compilation
    os.environ['XLA_FLAGS'] += ' --xla_backend_optimization_level=0'
os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # tests/plan/test_targets.py compiles for absent GPUs
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'zerosearch_jax_test_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import hypothesis
import jax
import pytest

# Only processes that tests start keep their programs. Those of several CPU devices that are read back may run their
# collectives in another order on each device, and hang.
jax.config.update('jax_enable_compilation_cache', False)

hypothesis.settings.register_profile('tests', deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile('tests')


@pytest.fixture
def strict_ranks():
    """Fail on implicit rank promotion inside the test."""
    with jax.numpy_rank_promotion('raise'):
        yield


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
    """Drop a module's programs: each holds memory maps, of which Linux grants a process 65,530."""
    yield
    jax.clear_caches()
