"""Checkpoints that are put aside stay, whatever becomes of the run."""

import contextlib
import json

import jax.numpy as jnp
import orbax.checkpoint as ocp

from zerosearch_jax.run.checkpoint import Checkpoints


def test_the_newest_step_is_put_aside_and_outlives_those_that_follow(tmp_path):
    kept = tmp_path / 'last_good'
    with contextlib.closing(Checkpoints(tmp_path / 'checkpoints', keep=2)) as checkpoints:
        checkpoints.put_aside(kept, 9)
        assert not kept.exists()  # nothing yet
        for step in (1, 2, 3):
            checkpoints.save(step, {'w': jnp.full(3, float(step))}, {'step': step})
            checkpoints.put_aside(kept, 2)
        checkpoints.save(4, {'w': jnp.full(3, 4.0)}, {'step': 4})
    assert [p.name for p in kept.iterdir()] == ['2']
    assert json.loads((kept / '2' / 'host' / 'metadata').read_text()) == {'step': 2}
    with ocp.CheckpointManager(kept) as manager:
        restored = manager.restore(2, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    assert (restored.state['w'] == 2).all()
