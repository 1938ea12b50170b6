"""Checkpoints by Orbax: the training state, and one JSON item with the host's state.

A step is visible only once it is complete (Orbax renames it into place), so a run killed at any moment resumes from
the last complete one.
"""

import errno
import functools
import logging
import os
import pathlib
import shlex
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

MOST_OF_A_CAUSE = 160  # characters of the cause that a message quotes
NEWEST = 2  # number of newest checkpoints that are kept
_OF_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # files are missing; other errors come from the disk


def complete_steps(directory: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in a directory, oldest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(path.name) for path in found if path.is_dir() and path.name.isdigit())


def read_params(directory: pathlib.Path) -> dict:
    """The policy's trained weights in the directory of one checkpoint, as NumPy arrays; the run may still be running.

    Raises:
      ValueError: the checkpoint is damaged.
      OSError: it is gone, or the disk cannot be read.
    """
    _silence_threads()
    # one process reads, without waiting for others
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix='read'
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        try:
            saved = reader.metadata(directory.absolute() / 'state').item_metadata.tree
            policy = saved.get('policy', saved)  # launch.train has the critic beside it, launch.sft not
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
    """Silences Orbax's threads and tasks, which would print a traceback each; our error is one line."""
    logging.getLogger('absl').addFilter(lambda record: not (record.exc_info and 'orbax' in record.pathname))
    # when one read fails, Orbax abandons the others: collected tasks, coroutines that are never awaited
    logging.getLogger('asyncio').addFilter(lambda record: not _of_orbax(record.exc_info, record.getMessage()))
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    shown = sys.unraisablehook

    def hook(each):
        info = (each.exc_type, each.exc_value, each.exc_traceback)
        if str(each.exc_value) != 'Event loop is closed' and not _of_orbax(info, ''):
            shown(each)

    sys.unraisablehook = hook


def _of_orbax(info, text: str) -> bool:
    """Whether Orbax is in the traceback of an error, in the form of `logging`, or in its text."""
    frames = traceback.walk_tb(info[2] if info else None)
    return 'orbax' in text or any('orbax' in frame.f_code.co_filename for frame, _ in frames)


def _unread(directory: pathlib.Path, error: Exception) -> Exception:
    """The error for a checkpoint that could not be read; it asks to delete the checkpoint only if that is damaged."""
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
    command = f'rm -r {shlex.quote(str(directory))}'
    return ValueError(f'checkpoint {step} is damaged ({cause}); delete it to {then}: {command}')


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


def most_kept(steps: int, keep_every: int, keep: int = NEWEST) -> int:
    """The most checkpoints of a run that are on disk at once: the newest, those of every `keep_every`-th step, that of
    last_good/, and one that is being written."""
    return keep + 2 + (steps // keep_every if keep_every else 0)


class Checkpoints:
    """Owns the Orbax manager of one run directory.

    Args:
      directory: has one sub-directory for each step.
      keep: number of newest checkpoints that are kept.
      keep_every: checkpoints of every `keep_every`-th step are kept too; 0: none.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = NEWEST, keep_every: int = 0):
        _silence_threads()
        self._directory, self._keep, self._every, self._bytes = directory, keep, keep_every, 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    def require_space(self, state, exported, steps: int, every: int):
        """Prints how much disk the run will use, including last_good/ and the export at the end.

        Args:
          state: of the run.
          exported: the part of it that is exported at the end.
          steps: of the whole run.
          every: steps between two checkpoints.

        Raises:
          disk.DiskFull: that much is not free.
        """
        self._bytes, done = _size(state), self.latest() or 0
        to_come = steps // every - done // every + bool(steps % every)
        held = {*complete_steps(self._directory), *complete_steps(self._directory.with_name('last_good'))}
        kept = most_kept(steps, self._every, self._keep)
        needed = min(max(kept - len(held), 1), to_come) * self._bytes + _size(exported)
        require = functools.partial(disk.require, self._directory.parent, needed, 'checkpoints and weights')
        progress.log(on_first_process(require))

    def save(self, step: int, state, host: dict):
        """Saves in the background; the state may be donated at once.

        Raises:
          ValueError: a number of the state is not finite.
          disk.DiskFull: the disk has no room for this checkpoint, or had none for the one before.
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
        """Reads a step into the given shapes and shardings, on any mesh.

        Raises:
          ValueError: the checkpoint is damaged, or does not match the configuration.
          OSError: it is gone, or the disk cannot be read.
        """
        target = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, shardings
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
            return restored.state, restored.host
        except (MemoryError, jax.errors.JaxRuntimeError):  # for example out of memory on a device
            raise
        except Exception as error:  # many kinds: files are missing, truncated or of another format
            if self._shapes(step) in (None, _shapes(target)):
                raise _unread(self._directory / str(step), error) from error
            raise ValueError(
                f'checkpoint {step} in {self._directory} does not match the configured model or adapter; '
                'use another --workdir, or the configuration in its config.json'
            ) from error

    def _shapes(self, step: int) -> list[tuple[int, ...]] | None:
        """The shapes of the saved arrays, or None if their description cannot be read."""
        try:
            return _shapes(self._manager.item_metadata(step).state.tree)
        except Exception:
            return None

    def put_aside(self, directory: pathlib.Path, last: int):
        """Copies the newest complete step up to `last`, if there is one, to `directory` and replaces what is there.

        The files of a checkpoint never change, so hard links are used if the file system has them.
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
        """Waits until all saves are done."""
        with self._told():
            self._manager.wait_until_finished()
            self._manager.close()
