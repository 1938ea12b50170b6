"""Mutants: small wrong changes of what computes figures, each of which the tests of its module should notice.

    python -m tests.mutants [--results mutants.jsonl] [MODULE ...]

Every mutant is one changed operator, comparison, mask or number in a copy of the code, on which the quick tests of the
module run. What is in the results is not run again; then the survivors are printed.
"""

import argparse
import ast
import copy
import json
import os
import pathlib
import random
import shlex
import shutil
import sys
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'

import flax.struct  # noqa: F401
import hypothesis.strategies  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import pytest
import transformers  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]
LEARNER = (
    'by_turn or turns_end or minibatches_are or denominators or hardly or k1_penalty or only_where_asked or k1_is '
    'or returns_to_go or alone'
)
LOSSES = 'reference or clipping or ratio or advantage or gspos or k2 or k3 or stale or d2 or mask or observations_get'
BATCHES = 'test_advantages or test_credit or leave_one or batch or shift or single or gae_is or whitening'
MODULES = {  # how many mutants of each, the functions that they are made in ('': all), the tests that should notice
    'rl/advantages.py': (
        16,
        '',
        f'tests/rl/test_advantages.py tests/rl/test_credit_by_turn.py tests/rl/test_algorithms.py -k "{BATCHES}"',
    ),
    'rl/algorithms.py': (8, 'weigh_tokens TokenMap', 'tests/rl/test_algorithms.py -k "token_map or weighed"'),
    'rl/losses.py': (10, 'policy_loss segment_mean', f'tests/rl/test_losses.py -k "{LOSSES}"'),
    'rl/critic.py': (6, 'value_loss token_values', 'tests/rl/test_algorithms.py -k "value_loss or critics_value"'),
    'rl/state.py': (6, 'schedule optimizer', 'tests/rl/test_state.py'),
    'train/learner.py': (
        8,
        'learn _pack _recomputed _critic_advantages _updates',
        f'tests/rl/test_algorithms.py -k "{LEARNER}"',
    ),
    'train/credit.py': (4, '', f'tests/rl/test_algorithms.py -k "{LEARNER}"'),
    'rollout/rollout.py': (16, '', 'tests/rollout/test_rollout.py -k "not real and not malformed"'),
    'evaluate/report.py': (12, '', 'tests/evaluate/test_report.py'),
}
ALGORITHMS, GROUPS = 'tests/rl/test_algorithms.py -k', 'tests/train/test_dynamic_sampling.py -k'
NAMED = [  # mutants that no test once noticed: module, text, what it becomes, the test that notices
    ('rl/critic.py', ':-1], ((0, 0), (1, 0))', '1:], ((0, 0), (0, 1))', f'{ALGORITHMS} critics_value'),
    ('train/credit.py', 'turns)) - penalty', 'turns)) + penalty', f'{ALGORITHMS} k1_penalty'),
    ('train/credit.py', 'rewards[-1] - p', 'rewards[-1] + p', f'{ALGORITHMS} k1_by_turn'),
    ('rl/advantages.py', '(a - e)', '(a + e)', 'tests/rl/test_credit_by_turn.py'),
    ('rollout/rewards.py', 'left = left - {', 'left = left | {', 'tests/rollout/test_rewards.py -k brings_anew'),
    ('train/learner.py', "'budget': self._minibatch", "'budget': self._trajectories", f'{ALGORITHMS} denominators'),
    ('train/learner.py', '-(-self._minibatch // MICRO)', 'self._minibatch // MICRO', f'{ALGORITHMS} denominators'),
    ('rl/losses.py', 'log_ratio), sampled', 'log_ratio), active', 'tests/rl/test_losses.py -k gspos_mean'),
    ('train/rl.py', ') // cfg.rollout.group', ') % cfg.rollout.questions', f'{GROUPS} one_group'),
    ('train/rl.py', 'step - 2', 'step - 1', f'{GROUPS} last_good'),
    ('train/trainer.py', 'if q.id not in seen', 'if q.id', f'{GROUPS} never_asks'),
    ('evaluate/report.py', 'al(after - before', 'al(before - after', 'tests/evaluate/test_report.py -k gained'),
    ('evaluate/tables.py', '0.025, 0.975', '0.05, 0.95', 'tests/evaluate/test_intervals.py -k strata'),
]
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def mutants(source: str, functions: str) -> list[tuple[int, str, str]]:
    """Every (line, what is changed, mutated source)."""
    found, nodes = [], [*ast.walk(ast.parse(source))]
    within = [node for node in nodes if getattr(node, 'name', None) in functions.split()] or nodes[:1]
    inside = {inner for node in within for inner in ast.walk(node)}
    for index, node in enumerate(nodes):
        if node in inside and (changed := _changed(copy.deepcopy(node))):
            whole = ast.parse(source)
            target = [*ast.walk(whole)][index]
            target.__dict__ = changed.__dict__
            found.append((node.lineno, f'{ast.unparse(node)}  ->  {ast.unparse(changed)}', ast.unparse(whole)))
    return found


def _changed(node: ast.AST) -> ast.AST | None:
    """The node with one operator, comparison, sign or number changed; None if it has none."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        if "'" in ast.unparse(node) and isinstance(node.op, ast.Div):
            return None  # the name of a file
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):  # of -x, ~x, not x
        node.op = ast.UAdd()
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    else:
        return None
    return node


def chosen(module: str, source: str) -> list[tuple[int, str, str, str]]:
    """The named mutants of a module, and as many of the others as MODULES says, with the tests that should notice."""
    found = []
    for name, text, other, tests in NAMED:
        if name == module:
            if source.count(text) != 1:
                raise ValueError(f'{module} has {source.count(text)} times {text!r}: bring NAMED up to date')
            line = source[: source.index(text)].count('\n') + 1
            found.append((line, f'{text}  ->  {other}', source.replace(text, other), tests))
    count, functions, tests = MODULES.get(module, (0, '', ''))
    made = mutants(source, functions) if count else []
    return found + [(*one, tests) for one in sorted(random.Random(0).sample(made, min(count, len(made))))]


def noticed(tree: pathlib.Path, tests: str) -> bool:
    """Whether a test fails. In a child that has the imports which take longer than the tests, but no code of ours."""
    child = os.fork()
    if child:
        return bool(os.waitpid(child, 0)[1])
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os._exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', '-m', 'not slow', *shlex.split(tests)]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('modules', nargs='*')
    parser.add_argument('--results', type=pathlib.Path, default=pathlib.Path('mutants.jsonl'))
    args = parser.parse_args()
    known = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(row['module'], row['line'], row['change']) for row in known}
    with tempfile.TemporaryDirectory() as directory:
        tree = pathlib.Path(directory) / 'tree'
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.git', 'runs', '__pycache__', '.hypothesis'))
        for module in args.modules or dict.fromkeys([*MODULES, *(m for m, *_ in NAMED)]):
            path = tree / 'zerosearch_jax' / module
            source = path.read_text()
            for line, change, mutated, tests in chosen(module, source):
                if (module, line, change) in done:
                    continue
                path.write_text(mutated)
                row = {'module': module, 'line': line, 'change': change, 'noticed': noticed(tree, tests)}
                known.append(row)
                print('noticed ' if row['noticed'] else 'SURVIVED', module, line, change, flush=True)
                with args.results.open('a') as file:
                    file.write(json.dumps(row) + '\n')
            path.write_text(source)
    survivors = [row for row in known if not row['noticed']]
    print(f'{len(known)} mutants, {len(survivors)} survived')
    for row in survivors:
        print(row['module'], row['line'], row['change'])


if __name__ == '__main__':
    main()
