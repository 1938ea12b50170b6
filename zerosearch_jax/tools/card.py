"""The model card of exported weights: what they are, what was measured, their prompt, how they were trained."""

import json
import pathlib
import re

from zerosearch_jax import settings
from zerosearch_jax.evaluate import report
from zerosearch_jax.evaluate.intervals import shown
from zerosearch_jax.evaluate.scores import counted
from zerosearch_jax.rollout.wording import policy_template
from zerosearch_jax.run import jsonl
from zerosearch_jax.run.trained import Trained
from zerosearch_jax.text import protocol

_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')


def is_simulator(run: dict) -> bool:
    """Whether a run of launch.sft made a simulator."""
    demos = run.get('demos', {})
    role = demos.get('source', '').partition(':')[2] or demos.get('role', '')
    return bool(demos) and role != 'policy'


def grammar(run: dict) -> protocol.Grammar:
    """How the policy of a run searches."""
    return protocol.GRAMMARS[run.get('rollout', {}).get('grammar', 'tags')]


def card(found: Trained, name: str, base: str, whole: bool, drawn: bool = False) -> str:
    """README.md in the format of the Hugging Face hub.

    Args:
      found: the weights; measured results are read from their run's directory.
      name: of the exported directory.
      base: the model that they were trained from; '': unknown.
      whole: a model rather than an adapter.
      drawn: whether curves.png lies beside it.
    """
    parts = [
        _front_matter(base, whole),
        f'# {_line(name)}',
        _about(found, base, whole),
        *([f'The training is not finished: these weights are of {found.state}.'] if found.state else []),
        f'## Results\n\n{_results(found)}',
        *(['![What the training measured, by its steps](curves.png)'] if drawn else []),
        *([] if is_simulator(found.run) else [f'## Use\n\n{_use(found.run)}']),
        f'## Configuration\n\n{_code(settings.to_json(found.run)) if found.run else "Not known."}',
    ]
    return '\n\n'.join(parts) + '\n'


def _front_matter(base: str, whole: bool) -> str:
    about = {
        'library_name': 'transformers' if whole else 'peft',
        'pipeline_tag': 'text-generation',
        'tags': ['zerosearch', 'search', *([] if whole else ['lora'])],
    }
    if _HUB_ID.fullmatch(base) and not pathlib.Path(base).exists():
        about['base_model'] = base
    return '---\n' + ''.join(f'{key}: {json.dumps(value)}\n' for key, value in about.items()) + '---'  # JSON is YAML


def _about(found: Trained, base: str, whole: bool) -> str:
    form = 'A language model' if whole else 'A LoRA adapter'
    does = 'plays a search engine' if is_simulator(found.run) else 'answers questions by searching'
    how = 'fine-tuned on demonstrations' if 'demos' in found.run else 'trained'
    origin = f' from {_line(base)}' if base else ''
    if algorithm := found.run.get('rl', {}).get('algorithm'):
        how, origin = f'trained{origin} by reinforcement learning ({_line(algorithm)}) on {_search(found.run)}', ''
    return f'{form} that {does}, {how}{origin}, with zerosearch_jax.'


def _search(run: dict) -> str:
    kind = run.get('simulator', {}).get('kind')
    named = {'oracle': 'an oracle', 'engine': 'a real search engine', 'none': 'questions without search'}
    return named.get(kind, 'search that a language model simulates')


def _results(found: Trained) -> str:
    run, directory = found.run, found.directory
    written = directory / 'metrics.jsonl' if directory else None
    rows = jsonl.read_jsonl(written) if written and written.is_file() else []
    rows = [row for row in rows if found.step is None or row['step'] <= found.step]
    if 'demos' in run:
        return _held_out(found, rows)
    evaluated = report.evaluations(directory) if directory else {}
    evaluated = {step: each for step, each in evaluated.items() if found.step is None or step <= found.step}
    if not evaluated:
        return 'Not run.'
    lines = ['| after step | EM | F1 | searches a question | questions that failed |', '|---|---|---|---|---|']
    for step, group in evaluated.items():
        sets = {f'{step}, {_line(name)}': own for name, own in report.by_set(group).items()}
        for label, own in {str(step): group, **sets}.items():
            scores = report.scores_with_intervals(own)
            cells = [shown(scores[name]) for name in ('em', 'f1')]
            searches = sum(len(row['searches']) for row in counted(own)) / max(scores['questions'], 1)
            lines.append(f'| {label} | {cells[0]} | {cells[1]} | {searches:.2f} | {scores["failed"]} |')
    count, data, engine = len(group), _line(run['data']['test']), _line(run['engine']['kind'])
    how = f'temperature {run["evaluation"]["temperature"]}, engine {engine}'
    lines.append(f'\n{count} held-out questions of {data}, {how}; 95 % intervals over the questions alone.')
    return '\n'.join([*lines, *_training(directory, rows)])


def _held_out(found: Trained, rows: list[dict]) -> str:
    losses = [(row['loss/held_out'], row['step']) for row in rows if 'loss/held_out' in row]
    if not losses:
        return 'Not run.'
    best = found.step is None and found.run.get('sft', {}).get('patience')  # early stopping exports the best weights
    loss, step = min(losses) if best else losses[-1]
    return f'Held-out loss after step {step}: {loss:.4f} nats a token.'


def _training(directory: pathlib.Path, rows: list[dict]) -> list[str]:
    rewards = [(row['step'], row['reward/mean']) for row in rows if 'reward/mean' in row]
    lines = []
    if rewards:
        lines.append(f'\nMean reward: {rewards[0][1]:.3f} at step 1, {rewards[-1][1]:.3f} at step {rewards[-1][0]}.')
    path = directory / 'summary.json'
    summary = settings.read_json(path) if path.is_file() else {}
    cost = summary.get('cost', {}).get('text')
    if cost and rewards and summary.get('steps') == rewards[-1][0]:  # it is of the whole run
        lines.append(f'Training took {_line(cost.removeprefix("cost: "))}.')
    if failed := sum(row.get('cost/failed_queries', 0) for row in rows):
        lines.append(f'{failed:.0f} of its searches failed; their episodes do not count.')
    return lines


def _use(run: dict) -> str:
    rollout, own = run.get('rollout', {}), grammar(run)
    blanks = {name: f'{{{name}}}' for name in ('question', 'documents')}
    blanks |= {'search': own.how, 'searches': str(rollout.get('max_turns', ''))}
    wording = protocol.fill(policy_template(rollout.get('prompt', 'search')).user, **blanks)
    raw = rollout.get('prompt_format') == 'raw'
    form = 'The prompt is this text, without a chat template' if raw else "The prompt is one user's message"
    stops = ' or '.join(f'`{tag}`' for tag in own.stops)
    place = 'between `<information>` and `</information>`'
    if own.role:
        tools = json.dumps(own.tools, indent=2)
        form += f', and the `tools` of the chat template are\n\n{_code(tools)}\n\nThe text is'
        place = f'as a message of the role `{own.role}`'
    return (
        f'{form}:\n\n{_code(wording)}\n\nGenerate until {stops}. After a query append the documents, `Doc 1: ...` and '
        f'so on, one on each line, {place}, and continue to generate.'
    )


def _line(text: str) -> str:
    """Text for one line of prose or a cell of a table, without Markdown formatting."""
    return re.sub(r'([\\`*_{}\[\]<>|#])', r'\\\1', ' '.join(str(text).split()))


def _code(text: str) -> str:
    """A code block, in which no content is formatted."""
    return '\n'.join(f'    {line}' for line in text.splitlines())
