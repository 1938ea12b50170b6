"""The mesh, the axis table and sharded initialization: nothing is silently left unsharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from zerosearch_jax import sharding
from zerosearch_jax.models import cache, transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.sharding import Param, make_mesh

MESHES = [(1, 1, 1), (1, 4, 2), (2, 2, 2)]
LAYOUT = transformer.layout(PRESETS['tiny'])


def test_mesh_axes_and_order():
    mesh = make_mesh((2, 1, 4))
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 1, 'tensor': 4}
    assert mesh.axis_names == sharding.AXES
    assert list(mesh.devices.flat) == jax.devices()


def test_default_mesh_is_one_device():
    assert make_mesh().devices.tolist() == [[[jax.devices()[0]]]]


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [((-1, 1, 1), (8, 1, 1)), ((1, -1, 2), (1, 4, 2)), ((2, 2, -1), (2, 2, 2)), ((4, 2, -1), (4, 2, 1))],
)
def test_minus_one_takes_the_rest(shape, expected):
    assert make_mesh(shape).devices.shape == expected


def test_minus_one_counts_the_given_devices():
    assert make_mesh((1, -1, 2), jax.devices()[:4]).devices.shape == (1, 2, 2)


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((4, 4, 1), 'needs 16 devices, but there are 8'),
        ((-1, 3, 1), '3 does not divide'),
        ((16, -1, 1), '16 does not divide'),
        ((-1, -1, 1), 'at most one of them -1'),
        ((0, 1, 1), 'must be positive'),
        ((-2, 1, 1), 'must be positive'),
        ((2, 4), 'three sizes: data, fsdp, tensor'),
    ],
)
def test_bad_mesh_says_why(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_another_mesh_has_the_same_devices_in_the_same_order():
    whole = make_mesh((1, 4, 2))
    assert sharding.regrouped(whole, (), 'mesh') is whole
    other = sharding.regrouped(whole, (-1, 1, 1), 'mesh')
    assert other.devices.shape == (8, 1, 1) and list(other.devices.flat) == list(whole.devices.flat)
    for shape, why in (((4, 1, 1), 'must have the 8 devices'), ((2, 4), 'three sizes'), ((3, -1, 1), '3 does not div')):
        with pytest.raises(ValueError, match=f'^config.x.mesh.*{why}'):
            sharding.regrouped(whole, shape, 'config.x.mesh')


def test_spec_maps_logical_axes():
    assert sharding.spec('batch', None, 'mlp') == P(('data', 'fsdp'), None, ('tensor',))
    assert sharding.spec('vocab', 'embed') == P(('tensor',), ('fsdp',))
    assert sharding.spec() == P()


def test_constrain_without_a_mesh_raises():
    with pytest.raises(ValueError, match='needs a mesh'):
        jax.jit(lambda x: sharding.constrain(x, 'batch'))(jnp.zeros(8))


@pytest.mark.parametrize('axes', [('batch',), ('batch', None, None)])
def test_constrain_with_the_wrong_rank_raises(axes):
    with jax.set_mesh(make_mesh()), pytest.raises(ValueError, match=f'{len(axes)} axes for an array of rank 2'):
        jax.jit(lambda x: sharding.constrain(x, *axes))(jnp.zeros((8, 8)))


def test_constrain_shards():
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        out = jax.jit(lambda: sharding.constrain(jnp.zeros((8, 3, 6)), 'batch', None, 'mlp'))()
    assert out.sharding.shard_shape(out.shape) == (2, 3, 3)


def test_named_without_axes_is_replicated():
    assert sharding.named(make_mesh((2, 2, 2))).is_fully_replicated


@pytest.mark.parametrize('shape', [(1, 1, 3), (1, 5, 1)])
def test_indivisible_weight_is_named(shape):
    layout = {'layers': {'fits': Param((2, 30), (None, None)), 'odd_one': Param((2, 64), ('embed', 'heads'))}}
    size, axis, parts = (64, 'heads', 3) if shape[2] == 3 else (2, 'embed', 5)
    with pytest.raises(ValueError, match=rf"\['odd_one'\] has {size} {axis}, which {parts}"):
        sharding.shardings(layout, make_mesh(shape))


def test_axes_must_match_the_rank():
    with pytest.raises(ValueError):
        sharding.shardings({'w': Param((4, 4), ('embed',))}, make_mesh())


def test_init_is_the_same_on_every_mesh_and_born_sharded():
    first = None
    for shape in MESHES:
        mesh = make_mesh(shape)
        params = sharding.init(LAYOUT, jax.random.key(3), mesh)
        jax.tree.map(
            lambda w, s: np.testing.assert_equal(w.sharding == s, True), params, sharding.shardings(LAYOUT, mesh)
        )
        first = first or jax.device_get(params)
        jax.tree.map(np.testing.assert_array_equal, first, jax.device_get(params))
        if shape == (2, 2, 2):
            assert params['layers']['gate'].sharding.shard_shape((2, 64, 128)) == (2, 32, 64)


def test_init_of_a_leaf_is_independent_of_its_siblings():
    mesh, key = make_mesh(), jax.random.key(3)
    alone = sharding.init({'layers': {'up': LAYOUT['layers']['up']}}, key, mesh)
    whole = sharding.init(LAYOUT, key, mesh)
    np.testing.assert_array_equal(alone['layers']['up'], whole['layers']['up'])
    assert np.abs(whole['layers']['up'] - whole['layers']['gate']).max() > 0.1  # same shape, other path
    other = sharding.init({'layers': {'up': LAYOUT['layers']['up']}}, jax.random.key(4), mesh)
    assert np.abs(whole['layers']['up'] - other['layers']['up']).max() > 0.1


def test_init_scales():
    layout = {
        'wide': Param((3, 400, 50), (None, None, None)),
        'table': Param((400, 50), (None, None), 'embedding'),
        'ones': Param((5,), (None,), 'ones'),
        'zeros': Param((5,), (None,), 'zeros'),
    }
    params = jax.device_get(sharding.init(layout, jax.random.key(0), make_mesh()))
    np.testing.assert_allclose(params['wide'].std(), 400**-0.5, rtol=0.05)
    np.testing.assert_allclose(params['table'].std(), 0.02, rtol=0.05)
    assert (params['ones'] == 1).all() and (params['zeros'] == 0).all()


def test_abstract_equals_what_init_makes():
    mesh = make_mesh((1, 4, 2))
    made = sharding.init(LAYOUT, jax.random.key(0), mesh, jnp.bfloat16)
    described = sharding.abstract(LAYOUT, mesh, jnp.bfloat16)
    assert jax.tree.map(lambda w: (w.shape, w.dtype, w.sharding), made) == jax.tree.map(
        lambda w: (w.shape, w.dtype, w.sharding), described
    )


def test_cache_is_born_sharded_and_its_slots_must_divide():
    cfg, mesh = PRESETS['tiny'], make_mesh((2, 2, 2))
    made = cache.create(cfg, mesh, 8, 16)
    assert made.layers[0][0].sharding.shard_shape(made.layers[0][0].shape) == (2, 1, 16, 16)
    with pytest.raises(ValueError, match='multiple of 4'):
        cache.create(cfg, mesh, 6, 16)
