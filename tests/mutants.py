"""Mutants: small wrong changes of what computes figures, each of which the tests of its module should notice.

    python -m tests.mutants [--results mutants.jsonl] [MODULE ...]

Every mutant is one changed operator, comparison, mask or number in a copy of the code, on which the quick tests of the
module run. What is in the results is not run again; then the survivors are printed.
"""

import argparse
import ast
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
FORMULAS = 'tests/rl/test_algorithms.py -k "(paper or divides or dapo or clips or is_truncated or normalizer or k2)'
LEARNER = (
    'tests/rl/test_algorithms.py -k "minibatches_are or denominators or hardly or k1_penalty or failed_trajectories or '
    'alone_first or only_where_asked or gaps_are or k1_is or returns_to_go or truncated_importance or critic_learns"'
)
EPISODES = 'tests/rollout/test_rollout.py -k "not real and not malformed"'
MODULES = {  # how many mutants of each, the functions that they are made in ('': all), the tests that should notice
    'rl/advantages.py': (
        16,
        '',
        f'tests/rl/test_advantages.py {FORMULAS} or test_advantages or shift or leave or white or gae_is or over_the_batch"',
    ),
    'rl/algorithms.py': (8, 'weigh_tokens TokenMap', f'{FORMULAS} or token_maps"'),
    'rl/losses.py': (
        16,
        'policy_loss segment_mean',
        f'tests/rl/test_losses.py {FORMULAS} or test_losses and not logits"',
    ),
    'rl/critic.py': (6, 'value_loss token_values', 'tests/rl/test_algorithms.py -k "value_loss or critics_value"'),
    'rl/state.py': (8, 'schedule optimizer', 'tests/rl/test_state.py'),
    'train/learner.py': (20, 'Learner _k1_penalties _per_token _sampled _explained', LEARNER),
    'rollout/rollout.py': (16, '', EPISODES),
    'evaluate/report.py': (12, '', 'tests/evaluate/test_report.py'),
}
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def mutants(source: str, functions: str) -> list[tuple[int, str, str]]:
    """Every (line, what is changed, mutated source)."""
    found, count = [], len([*ast.walk(ast.parse(source))])
    for index in range(count):
        tree = ast.parse(source)
        node = [*ast.walk(tree)][index]
        wanted = [f for f in ast.walk(tree) if getattr(f, 'name', None) in functions.split()] or [tree]
        if not any(node is inner for f in wanted for inner in ast.walk(f)):
            continue
        line, before = getattr(node, 'lineno', 0), ast.unparse(node)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])]()
        elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
            node.op = SWAPS[type(node.op)]()
        elif isinstance(node, ast.UnaryOp):  # of -x, ~x, not x
            node.op = ast.UAdd()
            if isinstance(node.operand, ast.Constant):
                continue  # axes and indices from the end
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        else:
            continue
        found.append((line, f'{before}  ->  {ast.unparse(node)}', ast.unparse(tree)))
    return found


def noticed(copy: pathlib.Path, tests: str) -> bool:
    command = f'{sys.executable} -m pytest -q -x -p no:cacheprovider -m "not slow" {tests}'
    done = subprocess.run(
        command, shell=True, cwd=copy, env=os.environ | {'PYTHONPATH': str(copy)}, capture_output=True
    )
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f'{command}\n{done.stdout.decode()[-2000:]}')
    return done.returncode != 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('modules', nargs='*')
    parser.add_argument('--results', type=pathlib.Path, default=pathlib.Path('mutants.jsonl'))
    args = parser.parse_args()
    known = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(row['module'], row['line'], row['change']) for row in known}
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory) / 'copy'
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', 'runs', '__pycache__', '.hypothesis'))
        for module in args.modules or MODULES:
            count, functions, tests = MODULES[module]
            path = copy / 'zerosearch_jax' / module
            source = path.read_text()
            made = mutants(source, functions)
            for line, change, mutated in sorted(random.Random(0).sample(made, min(count, len(made)))):
                if (module, line, change) in done:
                    continue
                path.write_text(mutated)
                row = {'module': module, 'line': line, 'change': change, 'noticed': noticed(copy, tests)}
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
