"""Imports point one way, heavy or optional packages stay where they belong, and nothing is executed from data."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = 'zerosearch_jax'
FILES = sorted(ROOT.glob(f'{PACKAGE}/**/*.py'))
OUTSIDE = [*sorted(ROOT.glob('launch/**/*.py')), *sorted(ROOT.glob('configs/**/*.py'))]

# which of the package's own parts a part may import; parts that are files of the top level are named so
BELOW = {'sharding', 'prng', 'settings', 'progress'}
MODELS = BELOW | {'models'}
ALLOWED = {
    'sharding': set(),
    'prng': set(),
    'settings': set(),
    'progress': set(),
    'models': MODELS,
    'text': MODELS | {'text'},
    'data': BELOW | {'data'},
    'boards': BELOW,
    'metrics': BELOW | {'boards'},
    'alarms': set(),
    'learner': MODELS | {'rl', 'state', 'text', 'roles'},
    'state': MODELS,
    'checkpoint': MODELS | {'state'},
    'generate': MODELS | {'generate', 'text'},
    'rl': MODELS | {'rl', 'state', 'text'},
    'outside': BELOW,
    'search': BELOW | {'search', 'generate', 'text', 'data', 'outside'},
    'roles': MODELS | {'text', 'generate', 'search'},
    'trained': MODELS | {'roles', 'search'},
    'simulators': MODELS | {'roles', 'search', 'generate', 'text', 'data', 'outside'},
    'evaluate': BELOW | {'search', 'generate', 'text', 'data'},
    'cost': set(),
    'preemption': {'sharding'},
    'methods': BELOW | {'search', 'generate', 'text', 'data'},
    'report': BELOW | {'cost', 'evaluate', 'metrics'},
}


def imported(tree, module):
    """(dotted name, whether at module level) of everything a file imports; a `from a import b` gives a and a.b."""
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{module}: relative import'
            names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        else:
            continue
        for name in names:
            yield name, id(node) in top


def imports_of(path):
    return set(imported(ast.parse(path.read_text()), path))


def part(path):
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix('.py')


def own(path):
    """Parts of the package that a file imports."""
    return {name.split('.')[1] for name, _ in imports_of(path) if name.startswith(f'{PACKAGE}.')}


def ids(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize('path', [p for p in FILES if part(p) in ALLOWED], ids=ids)
def test_imports_point_downwards(path):
    assert own(path) <= ALLOWED[part(path)]


def test_every_part_is_either_restricted_or_above_all():
    above = {'train_rl', 'trainer', 'experiment', 'train_sft', 'sft', 'tools', '__init__', 'adapters'}
    assert {part(p) for p in FILES} <= ALLOWED.keys() | above
    for path in FILES:
        if part(path) not in above:
            assert not own(path) & above


def test_the_rules_above_see_imports():
    assert 'rl' in own(ROOT / PACKAGE / 'train_rl.py')
    assert {'generate', 'text', 'data'} <= own(ROOT / PACKAGE / 'search' / 'rollout.py')
    lazy = imported(ast.parse('def f():\n  from zerosearch_jax.search import x'), '')
    assert set(lazy) == {('zerosearch_jax.search', False), ('zerosearch_jax.search.x', False)}


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_the_package_imports_no_launcher_and_no_configuration(path):
    assert not {name.split('.')[0] for name, _ in imports_of(path)} & {'launch', 'configs', 'tests', 'benchmarks'}


@pytest.mark.parametrize('path', [*FILES, *sorted(ROOT.glob('configs/**/*.py'))], ids=ids)
def test_only_the_command_lines_touch_flags(path):
    assert not any(name.split('.')[0] == 'absl' for name, _ in imports_of(path))


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_heavy_packages_are_imported_only_where_they_are_needed_and_lazily(path):
    places = {
        'datasets': ('data/',),
        'tensorflow_datasets': ('data/',),
        'transformers': ('models/weights', 'text/tokenizer'),
    }
    where = str(path.relative_to(ROOT / PACKAGE).with_suffix(''))
    for name, at_module_level in imports_of(path):
        package = name.split('.')[0]
        if package in places:
            assert where.startswith(places[package]), f'{package} in {where}'
            assert not at_module_level, f'{package} is imported when {where} is'
        assert package not in ('torch', 'tensorflow', 'pandas'), package


@pytest.mark.parametrize('path', [*FILES, *OUTSIDE], ids=ids)
def test_no_nnx_and_nothing_that_executes_data(path):
    tree = ast.parse(path.read_text())
    names = {name for name, _ in imported(tree, path)}
    assert not {n for n in names if n.split('.')[0] in ('pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib')}
    assert not {n for n in names if n.startswith(('flax.nnx', 'flax.linen'))}
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {'eval', 'exec', '__import__', 'compile'}
    attributes = {
        f'{node.value.id}.{node.attr}'
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert not attributes & {'flax.nnx', 'os.system', 'torch.load'}
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    assert not any(k.arg in ('allow_pickle', 'shell') and getattr(k.value, 'value', True) for k in keywords)


@pytest.mark.parametrize('path', sorted(ROOT.glob('launch/*.py')), ids=ids)
def test_command_lines_hold_no_logic(path):
    tree = ast.parse(path.read_text())
    assert not any(isinstance(node, ast.ClassDef | ast.While | ast.AsyncFunctionDef) for node in ast.walk(tree))
    assert len(path.read_text().splitlines()) <= 120
