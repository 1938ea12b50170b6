"""The directory of a run: whose it is."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax

from zerosearch_jax import progress, settings


def claim(
    workdir: Path,
    config_json: str,
    results: Sequence[str] = ('metrics.jsonl', 'evaluation'),
    free: Sequence[str] = settings.MAY_CHANGE,
) -> None:
    """Makes `workdir` the place of the run with this configuration (JSON text), or checks that it is.

    A run that wrote none of its `results` yet, say because its data was not found, does not hold the place. Fields in
    `free`, dotted names, may differ.

    Raises:
      ValueError: it holds a run with another configuration.
    """
    path = workdir / 'config.json'
    begun = any((workdir / name).exists() for name in results)
    if begun and path.exists() and (changed := settings.changed_sections(path.read_text(), config_json, free)):
        raise ValueError(
            f'{workdir} holds a run with another configuration (it differs in {", ".join(changed)}); '
            'choose another --workdir, or delete it to start over'
        )
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        partial = path.with_name(f'.{path.name}.partial')
        partial.write_text(config_json)
        os.replace(partial, path)
        progress.keep(workdir / 'log.txt')
