"""Runs the notebooks of this directory from the top in a fresh kernel, and keeps what they show.

  python -m colab.execute
  python -m colab.execute 1_ask 3_train

They run in an empty directory. What is kept has no path of the machine in it and no frame that pages cannot show.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent
NOTEBOOKS = tuple(sorted(path.stem for path in HERE.glob('*.ipynb')))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(HERE / f'{name}.ipynb', as_version=4)


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The one cell that is tagged so."""
    (found,) = (cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
    return found


def execute(notebook: nbformat.NotebookNode, directory: pathlib.Path, given: Mapping[str, object] | None = None):
    """Runs a notebook in a directory, in place; `given` parameters take the place of its own.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    if given:
        parameters(notebook).source += ''.join(f'\n{name} = {value!r}' for name, value in given.items())
    environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
    environment |= {'PYTHONWARNINGS': 'ignore', 'TRANSFORMERS_VERBOSITY': 'error'}
    paths = [str(HERE.parent), os.environ.get('PYTHONPATH', '')]
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    where = {'metadata': {'path': str(directory)}}
    client = NotebookClient(
        notebook, timeout=1800, kernel_name='python3', resources=where, coalesce_streams=True, record_timing=False
    )
    client.execute(env=environment)


def adapters() -> dict[str, str]:
    """{name of a shipped adapter: its sha256}; what a notebook shows is theirs."""
    files = sorted((HERE.parent / 'zerosearch_jax' / 'adapters').glob('*.safetensors'))
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tidy(notebook: nbformat.NotebookNode):
    """Leaves out, in place, what is only of this machine: paths, versions, frames (no saved page shows them)."""
    kernel = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    notebook.metadata = {'kernelspec': kernel, 'adapters': adapters()}
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = [output for output in map(_tidied, cell.outputs) if output]


def _tidied(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    if 'text' in output:
        lines = (line for line in output.text.splitlines(keepends=True) if not _of_machine(line))
        output.text = ''.join(line for line, _ in itertools.groupby(lines))  # progress that stands still once
        return output if output.text else None
    return None if '<iframe' in ''.join(output.get('data', {}).get('text/html', '')) else output


def _of_machine(line: str) -> bool:
    return 'Warning' in line or any(f'{root}/' in line for root in ('/root', '/home', '/tmp', sys.prefix, HERE.parent))


def main(names: list[str]):
    for name in names or NOTEBOOKS:
        print(name, flush=True)
        notebook = read(name)
        with tempfile.TemporaryDirectory() as directory:
            execute(notebook, pathlib.Path(directory))
        tidy(notebook)
        nbformat.write(notebook, HERE / f'{name}.ipynb')


if __name__ == '__main__':
    main(sys.argv[1:])
