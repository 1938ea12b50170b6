"""Imports point one way, heavy or optional packages stay where they belong, and nothing is executed from data."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = 'zerosearch_jax'
FILES = sorted(ROOT.glob(f'{PACKAGE}/**/*.py'))
OUTSIDE = [*sorted(ROOT.glob('launch/**/*.py')), *sorted(ROOT.glob('configs/**/*.py'))]

# The parts from the ground up: each imports only parts that stand before it (docs/architecture.md).
PARTS = (
    *('sharding', 'prng', 'settings', 'progress', 'data', 'models', 'weights', 'text', 'generate', 'rl', 'search'),
    *('pretrained', 'policy', 'simulator', 'rollout', 'run', 'evaluate', 'train', 'plan', 'audit', 'study', 'tools'),
)
# what a part must not see, although it stands before it
HIDDEN = {
    'models': {'data'},
    'weights': {'data'},
    'text': {'data'},
    'generate': {'data', 'weights'},
    'rl': {'data', 'weights', 'generate'},  # it sees a Batch, and nothing else of where that comes from
    'audit': {'plan'},
    'study': {'plan', 'audit'},
}
MOST_MODULES_AT_THE_ROOT = 6
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60
CORE = ('models', 'weights', 'text', 'generate', 'rl', 'search', 'simulator', 'rollout')
MOST_LINES_OF_THE_CORE = 8232


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


def parts_of(path):
    """Parts that a file imports, its own left out."""
    return {name.split('.')[1] for name, _ in imports_of(path) if name.startswith(f'{PACKAGE}.')} - {part(path)}


def ids(path):
    return str(path.relative_to(ROOT))


def lines_of(path):
    return len(path.read_text().splitlines())


@pytest.mark.parametrize('path', [p for p in FILES if part(p) != '__init__'], ids=ids)
def test_no_import_runs_up(path):
    below = set(PARTS[: PARTS.index(part(path))]) - HIDDEN.get(part(path), set())
    assert parts_of(path) <= below


def test_the_rule_above_sees_imports():
    assert {'rl', 'policy'} <= parts_of(ROOT / PACKAGE / 'train' / 'learner.py')
    assert {'generate', 'text', 'data', 'search'} <= parts_of(ROOT / PACKAGE / 'rollout' / 'rollout.py')
    lazy = imported(ast.parse('def f():\n  from zerosearch_jax.search import x'), '')
    assert set(lazy) == {('zerosearch_jax.search', False), ('zerosearch_jax.search.x', False)}


def modules_imported():
    """{module: modules of the package that it imports, within functions too}."""
    names = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path for path in FILES}
    outside = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path for path in OUTSIDE}
    every = names | outside
    return {name: {found for found, _ in imports_of(path) if found in every} for name, path in every.items()}


def test_no_circle_not_even_within_functions():
    left = modules_imported()
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_the_house_keeps_its_size():
    root = [path for path in FILES if path.parent == ROOT / PACKAGE and path.name != '__init__.py']
    assert len(root) <= MOST_MODULES_AT_THE_ROOT
    assert sum(lines_of(path) for path in FILES if part(path) in CORE) <= MOST_LINES_OF_THE_CORE


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_no_module_and_no_function_is_long(path):
    assert lines_of(path) <= MOST_LINES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and part(path) in CORE:
            assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name


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
        'transformers': ('text/tokenizer',),
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
