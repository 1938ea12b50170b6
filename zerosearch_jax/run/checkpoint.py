"""Checkpoints: the training state through Orbax, and one JSON item with the host's state.

A step is visible only once it is complete (Orbax renames it into place), so a run killed at any moment resumes from
the last complete one.
"""

import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp


def _link(source: str, target: str):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Checkpoints:
    """Owns the Orbax manager of one run directory.

    Args:
      directory: holds one sub-directory a step.
      keep: newest checkpoints kept.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest(self) -> int | None:
        """The last complete step, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state, host: dict):
        """Saves in the background; the state may be donated right after."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        self._manager.save(step, args=items)

    def restore(self, step: int, abstract, shardings) -> tuple[Any, dict]:
        """Reads a step into the given shapes and shardings, on whatever mesh they name.

        Raises:
          ValueError: the checkpoint holds other weights than the configuration asks for.
        """
        target = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, shardings
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f'checkpoint {step} in {self._manager.directory} does not match the configured model or adapter; '
                'use another --workdir, or the configuration in its config.json'
            ) from error
        return restored.state, restored.host

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
        self._manager.wait_until_finished()
        self._manager.close()
