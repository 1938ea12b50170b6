"""Generates the reference of the package for those who import it: signatures and docstrings, as they are in the source.

python -m zerosearch_jax.tools.api_reference > docs/api.md
"""

import ast
import importlib
import inspect

_HEAD = """# API reference

This page answers which functions and classes to call if you import the package, with their signatures and docstrings.
It is for anyone who builds on a part of it. It is generated from the source by
`python -m zerosearch_jax.tools.api_reference > docs/api.md`.

The names are those of a research code base: they may change between versions, and the [changelog](../CHANGELOG.md) says
so. A suffix of a name or a shape in a docstring gives the axes: B sequences, T tokens, V vocabulary, D width, M
micro-batches of R rows of T tokens. [Architecture](architecture.md) shows how the parts call each other, and
[extending](extending.md) has worked examples. The fields of the configuration's dataclasses are in
[configuration](configuration.md)."""

# {heading: (what it is for, {module: public names})}
PARTS = {
    'Train and run': (
        'A configuration is an `ml_collections.ConfigDict`, as the files of `configs/` make it; `parse` checks it.',
        {
            'train.config': ['parse', 'Config'],
            'train.rl': ['train', 'train_step'],
            'train.trainer': ['Trainer', 'load_questions'],
            'train.learner': ['Learner', 'Learned'],
            'run.trained': ['find'],
        },
    ),
    'Models': (
        'Parameters are nested dicts of arrays, and every function of a model is pure.',
        {
            'pretrained': ['Model', 'open_model', 'load_model', 'load_adapter', 'open_engines'],
            'policy': ['Trainable', 'make_trainable', 'export_weights', 'open_policy'],
            'models.transformer': ['layout', 'hidden', 'logits'],
        },
    ),
    'Sharding': (
        'One declaration of parameters gives their initial values, their abstract shapes and their shardings.',
        {'sharding': ['make_mesh', 'Param', 'init', 'abstract', 'shardings', 'constrain', 'to_host']},
    ),
    'Generation': (
        'The engine samples from a model in slots of its key-value cache; a sequence may stop, be extended and go on.',
        {'generate.engine': ['Engine'], 'generate.requests': ['Role', 'Request', 'Stopped']},
    ),
    'Rollouts': (
        'An episode alternates between the policy and whatever answers its searches.',
        {
            'rollout.rollout': ['rollout', 'Trajectory'],
            'rollout.rewards': ['Scorer', 'RewardConfig'],
            'rollout.answers': ['f1', 'exact_match'],
            'search.search': ['SearchSource', 'Query', 'Result', 'Document', 'SearchFailed', 'engine_search'],
        },
    ),
    'The simulator': (
        'A model plays the search engine, and the curriculum sets how often its documents are noisy.',
        {
            'simulator.simulator': ['SimulatedSearch', 'draw_labels'],
            'simulator.curriculum': ['Curriculum', 'noise_probability', 'is_noisy'],
        },
    ),
    'Trajectories and batches': (
        'Segments become token sequences, and these are packed into the rows of a batch.',
        {'text.trajectory': ['Kind', 'Segment', 'TokenSequence', 'Batch', 'flatten', 'pack']},
    ),
    'Losses and algorithms': (
        'Everything here sees a `Batch` and nothing of where it comes from.',
        {
            'rl.algorithms': ['Algorithm', 'find_algorithm', 'weigh_tokens'],
            'rl.advantages': ['grpo', 'leave_one_out', 'reinforce_baseline', 'by_turn', 'gae', 'whiten'],
            'rl.losses': ['LossConfig', 'Compute', 'token_logprobs', 'policy_loss', 'nll_loss'],
            'rl.step': ['score', 'make_update'],
        },
    ),
    'Evaluation': (
        'Methods are compared on the same questions; scores come with intervals.',
        {
            'evaluate.evaluation': ['evaluate', 'Evaluator', 'load_questions'],
            'evaluate.scores': ['mean_scores', 'as_row'],
            'evaluate.report': ['summarize', 'pool'],
        },
    ),
}


def page() -> str:
    """The page as Markdown."""
    lines = [_HEAD]
    for heading, (purpose, modules) in PARTS.items():
        lines += ['', f'## {heading}', '', purpose]
        for name, symbols in modules.items():
            lines += ['', f'### zerosearch_jax.{name}', '', '```python', interface(name, symbols), '```']
    return '\n'.join(lines) + '\n'


def interface(module: str, symbols: list[str]) -> str:
    """The definitions of a module's symbols without the bodies of functions; KeyError if there is no such symbol."""
    source = inspect.getsource(importlib.import_module(f'zerosearch_jax.{module}'))
    defined = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return '\n\n\n'.join('\n'.join(_stub(defined[name], source.splitlines())) for name in symbols)


def _stub(node: ast.ClassDef | ast.FunctionDef, lines: list[str]) -> list[str]:
    """The lines of a definition: decorators and signature, docstring; of a class its fields and public methods too."""
    first = min(part.lineno for part in [node, *node.decorator_list])
    body = node.body[0]
    end = body.end_lineno if ast.get_docstring(node) is not None else max(node.lineno, body.lineno - 1)
    found = lines[first - 1 : end]
    for child in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(child, ast.FunctionDef) and (child.name in ('__init__', '__call__') or child.name[0] != '_'):
            found += ['', *_stub(child, lines)]
        elif isinstance(child, ast.AnnAssign | ast.Assign):
            found += [''] * (child is node.body[1]) + lines[child.lineno - 1 : child.end_lineno]
    return found


if __name__ == '__main__':
    print(page(), end='')
