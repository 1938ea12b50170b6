"""Checkpoints: the training state through Orbax, and one JSON item with the host's state.

A step is visible only once it is complete (Orbax renames it into place), so a run killed at any moment resumes from
the last complete one.
"""

import errno
import functools
import logging
import os
import pathlib
import shutil
import sys
import textwrap
import traceback
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from zerosearch_jax import progress
from zerosearch_jax.run import disk
from zerosearch_jax.search.journal import on_first_process

MOST_OF_A_CAUSE = 160  # characters of it that a message quotes
_OF_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # files are missing; other errors are of the disk


def complete_steps(directory: pathlib.Path) -> list[int]:
    """The steps that a directory of checkpoints holds, oldest first; those that are being written are left out."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(path.name) for path in found if path.is_dir() and path.name.isdigit())


def read_params(directory: pathlib.Path) -> dict:
    """The policy's trained weights in the directory of one checkpoint, as arrays of NumPy; the run may go on meanwhile.

    Raises:
      ValueError: it is damaged.
      OSError: it is gone, or the disk does not let it be read.
    """
    _silence_threads()
    # one process reads, and waits for no other
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix='read'
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        try:
            saved = reader.metadata(directory.absolute() / 'state').item_metadata.tree
            policy = saved.get('policy', saved)  # of launch.train beside the critic's, of launch.sft alone
            wanted = {'params': jax.tree.map(lambda leaf: np.empty((0,), leaf.dtype), policy['params'])}
            wanted = {'policy': wanted} if 'policy' in saved else wanted
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            options = ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=True)
            restored = reader.restore(directory.absolute() / 'state', args=options)
        except MemoryError:
            raise
        except Exception as error:
            raise _unread(directory, error) from error
    return restored.get('policy', restored)['params']


@functools.cache
def _silence_threads():
    """An error of ours is one line; Orbax would also print the traceback of each thread and task that met it."""
    logging.getLogger('absl').addFilter(lambda record: not (record.exc_info and 'orbax' in record.pathname))
    # of reads that Orbax gave up when another one failed: a collected task, or a coroutine that nobody awaits
    logging.getLogger('asyncio').addFilter(lambda record: not _of_orbax(record.exc_info, record.getMessage()))
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    shown = sys.unraisablehook

    def hook(each):
        info = (each.exc_type, each.exc_value, each.exc_traceback)
        if str(each.exc_value) != 'Event loop is closed' and not _of_orbax(info, ''):
            shown(each)

    sys.unraisablehook = hook


def _of_orbax(info, text: str) -> bool:
    """Whether Orbax is in the traceback of an error, as logging knows it, or in what is said of it."""
    frames = traceback.walk_tb(info[2] if info else None)
    return 'orbax' in text or any('orbax' in frame.f_code.co_filename for frame, _ in frames)


def _unread(directory: pathlib.Path, error: Exception) -> Exception:
    """What to tell of a checkpoint that could not be read: only what is there and damaged is to be deleted."""
    step, there = int(directory.name), complete_steps(directory.parent)
    if not directory.exists():
        held = ', '.join(map(str, there)) or 'none'
        return FileNotFoundError(f'checkpoint {step} is gone from {directory.parent}, which has {held}')
    for cause in disk.causes(error):
        number = cause.errno if isinstance(cause, OSError) else disk.error_number(str(cause))
        if number and number not in _OF_DAMAGE:
            where = getattr(cause, 'filename', None) or directory
            return OSError(number, os.strerror(number), str(where))
    before = max((other for other in there if other < step), default=None)
    then = 'start over' if before is None else f'continue from {before}'
    *_, root = disk.causes(error)
    cause = textwrap.shorten(str(root) or type(root).__name__, MOST_OF_A_CAUSE, placeholder=' ...')
    return ValueError(f'checkpoint {step} is damaged ({cause}); delete it to {then}: rm -r {directory}')


def _shapes(tree) -> list[tuple[int, ...]]:
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))


def _size(state) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _link(source: str, target: str):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@jax.jit
def _all_finite(state) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


class Checkpoints:
    """Owns the Orbax manager of one run directory.

    Args:
      directory: holds one sub-directory a step.
      keep: newest checkpoints kept.
      keep_every: beside them those of every so many steps; 0: none.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2, keep_every: int = 0):
        _silence_threads()
        self._directory, self._keep, self._every, self._bytes = directory, keep, keep_every, 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest(self) -> int | None:
        """The last complete step, None if there is none."""
        return self._manager.latest_step()

    def require_space(self, state, exported, steps: int, every: int):
        """Tells what is yet to be taken of the disk, one put aside in last_good/ and what is exported included.

        Args:
          state: of the run.
          exported: what of it is exported at the end.
          steps: of the whole run.
          every: so many of them are between two checkpoints.

        Raises:
          disk.DiskFull: that is not free.
        """
        self._bytes, done = _size(state), self.latest() or 0
        to_come = steps // every - done // every + bool(steps % every)
        kept = self._keep + 2 + (steps // self._every if self._every else 0)  # one more while it is written
        held = {*complete_steps(self._directory), *complete_steps(self._directory.with_name('last_good'))}
        needed = min(max(kept - len(held), 1), to_come) * self._bytes + _size(exported)
        require = functools.partial(disk.require, self._directory.parent, needed, 'checkpoints and weights')
        progress.log(on_first_process(require))

    def save(self, step: int, state, host: dict):
        """Saves in the background; the state may be donated right after.

        Raises:
          ValueError: a number of it is not finite.
          disk.DiskFull: there is no room, for this one or for the one before.
        """
        if not _all_finite(state):
            last = self.latest()
            kept = 'there is no checkpoint before it' if last is None else f'the last checkpoint is of step {last}'
            raise ValueError(
                f'the weights after step {step} are not finite and are not saved; {kept} in {self._directory}; lower '
                'the learning rate, look at the rewards, or start over from there'
            )
        self._bytes = _size(state)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        with self._told():
            self._manager.save(step, args=items)

    def _told(self):
        return disk.explain_full_disk(self._directory, self._bytes, 'a checkpoint')

    def restore(self, step: int, abstract, shardings) -> tuple[Any, dict]:
        """Reads a step into the given shapes and shardings, on whatever mesh they name.

        Raises:
          ValueError: the checkpoint is damaged, or holds other weights than the configuration asks for.
          OSError: it is gone, or the disk does not let it be read.
        """
        target = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, shardings
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
            return restored.state, restored.host
        except (MemoryError, jax.errors.JaxRuntimeError):  # of the devices' memory, say
            raise
        except Exception as error:  # there are many kinds: of files that are missing, cut, or of another format
            if self._shapes(step) in (None, _shapes(target)):
                raise _unread(self._directory / str(step), error) from error
            raise ValueError(
                f'checkpoint {step} in {self._directory} does not match the configured model or adapter; '
                'use another --workdir, or the configuration in its config.json'
            ) from error

    def _shapes(self, step: int) -> list[tuple[int, ...]] | None:
        """Of the saved arrays, None where their description cannot be read."""
        try:
            return _shapes(self._manager.item_metadata(step).state.tree)
        except Exception:
            return None

    def put_aside(self, directory: pathlib.Path, last: int):
        """Keeps the newest complete step up to `last`, if any, in a directory of its own, in place of what is there.

        Its files never change, so links to them do, where the file system has links.
        """
        self._manager.wait_until_finished()
        step = max((step for step in self._manager.all_steps() if step <= last), default=None)
        if step is None:
            return
        partial = directory.with_name(f'.{directory.name}.partial')
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self._manager.directory / str(step), partial / str(step), copy_function=_link)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)

    def close(self):
        """Waits for saves in flight."""
        with self._told():
            self._manager.wait_until_finished()
            self._manager.close()
