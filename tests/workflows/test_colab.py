"""The notebooks of colab/ run from the top in a fresh kernel, shortened by their one cell of parameters."""

import ast
import json
import re

import pytest

pytest.importorskip('colab.execute', reason='needs nbclient and ipykernel (extra `test`), and the repository')

from colab import execute

TINY = {'model': 'tiny', 'adapter': ''}
EPISODE = {'max_turns': 1, 'turn_tokens': 24, 'observation_tokens': 64, 'prompt_tokens': 768, 'response_tokens': 160}
SIMULATOR = TINY | {'prompt_tokens': 768, 'max_tokens': 24, 'attempts': 1, 'slots': 4}
SHORT = {
    '1_ask': {'CHANGES': {'policy': TINY, 'simulator': SIMULATOR, 'rollout': EPISODE, 'evaluation': {'corpus': 'toy'}}},
    '2_simulator': {
        'STEPS': 2,
        'QUERIES': 2,
        'SHIPPED': {},
        'CHANGES': {
            'model': {'model': 'tiny'},
            'demos': {'count': 8, 'held_out': 2},
            'simulator': {'prompt_tokens': 1024},
            'sft': {'batch': 2, 'row_length': 2048},
        },
    },
    '3_train': {
        'WARM_STEPS': 2,
        'STEPS': 2,
        'CHANGES': {'rollout': {'questions': 2, 'group': 2, 'slots': 4}, 'evaluation': {'questions': 2}},
        'REAL': {
            'policy': TINY | {'lora_rank': 4},
            'simulator': SIMULATOR,
            'rollout': EPISODE | {'questions': 2, 'group': 2, 'slots': 4},
            'rl': {'steps': 1, 'row_length': 1024},
            'evaluation': {'questions': 0},
        },
    },
    '4_mesh_and_plan': {
        'MODEL': 'tiny',
        'MESHES': [(1, 1, 1), (1, 4, 2), (2, 2, 2)],
        'TOKENS': 4,
        'HARDWARE': 'v5e:2x4',
        'CHANGES': {'policy.model': 'tiny', 'simulator.model': 'tiny', 'mesh': (1, 4, 2)},
    },
}


def kinds(notebook):
    """The media types that the outputs of code cells have."""
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    return [kind for output in outputs for kind in output.get('data', {})]


def printed(notebook):
    return ''.join(output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', ()))


@pytest.mark.thorough
@pytest.mark.parametrize('name', execute.NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
    notebook = execute.read(name)
    execute.execute(notebook, tmp_path, SHORT[name])
    assert 'image/png' in kinds(notebook)
    if name == '1_ask':
        assert '| BM25 | ' in json.dumps(notebook)
    elif name == '2_simulator':
        assert (tmp_path / 'runs' / 'audit' / 'audit.md').exists()
    elif name == '3_train':
        assert 'step 2/2' in printed(notebook) and 'data:text/html;base64' in json.dumps(notebook)
    else:
        assert printed(notebook).count('the same tokens: True') == 3 and 'It fits' in json.dumps(notebook)


@pytest.mark.parametrize('name', execute.NOTEBOOKS)
def test_a_notebook_says_how_to_open_it_and_has_one_cell_that_installs(name):
    cells = execute.read(name).cells
    first, install, parameters = cells[:3]
    assert first.cell_type == 'markdown' and 'On Colab: *File > Open notebook > GitHub*' in first.source
    assert install.source.count('pip install') == 1 and "find_spec('zerosearch_jax') is None" in install.source
    assert not any('input(' in cell.source for cell in cells)
    assert parameters.metadata.tags == ['parameters'] and execute.parameters(execute.read(name)) == parameters
    assigned = {node.targets[0].id for node in ast.parse(parameters.source).body}
    assert SHORT[name].keys() <= assigned


@pytest.mark.parametrize('name', execute.NOTEBOOKS)
def test_a_notebook_shows_a_run_and_no_machine(name):
    notebook = execute.read(name)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert 'image/png' in kinds(notebook)
    text = (execute.HERE / f'{name}.ipynb').read_text()
    assert len(text) < 1_000_000
    plain = re.sub(r'"image/png": "[^"]*"', '', text)
    assert not re.findall(r'(?<![\w.:/])/(?:root|home|tmp|usr|opt|work|Users|var)/\S*', plain)
    assert 'Warning' not in plain and '"output_type": "error"' not in plain


@pytest.mark.parametrize('name', execute.NOTEBOOKS)
def test_a_notebook_shows_what_the_shipped_adapters_do(name):
    assert execute.read(name).metadata.adapters == execute.adapters()


@pytest.mark.parametrize('name', execute.NOTEBOOKS)
def test_files_are_named_and_not_linked_because_colab_follows_no_relative_link(name):
    text = ''.join(cell.source for cell in execute.read(name).cells if cell.cell_type == 'markdown')
    assert not re.findall(r'\]\((?!https://)', text)
    named = re.findall(r'`(\d_\w+\.ipynb|docs/\w+\.md|configs/\w+\.py)', text)
    assert named and all((execute.HERE / name).exists() or (execute.HERE.parent / name).exists() for name in named)


def test_there_is_a_short_form_of_every_notebook():
    assert SHORT.keys() == set(execute.NOTEBOOKS) and len(SHORT) == 4
