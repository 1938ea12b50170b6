"""Writes a run as one HTML file: its curves, and every trajectory that it wrote.

    config.json, summary.json, metrics.jsonl ----------> facts  --.
    trajectories.jsonl, evaluation/, results.jsonl --+-> index  --+-- view.html --> WORKDIR/index.html
                                                     '-> bodies --'

The index has the columns of the list of trajectories. The rest of each trajectory is in the bodies, compressed a few
dozen at a time, which the browser unpacks when one of them is opened. The page makes no requests, and its content
security policy allows only its own script; all text is inserted as text.
"""

import base64
import collections
import gzip
import hashlib
import html
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.evaluate import report
from zerosearch_jax.evaluate.scores import METRICS, counted
from zerosearch_jax.run import curves, jsonl

PANELS = (
    *curves.PANELS,
    curves.Panel('Noisy documents', ('rollout/noise', 'rollout/noisy_share', 'rollout/mislabelled'), 'share'),
    curves.Panel('Largest gap, engine to trainer', ('loss/logprob_gap_max',), 'nats'),
    curves.Panel('Groups without variance', ('rollout/zero_variance_groups',), 'share of groups'),
)
# columns of a row of the index, in this order; source and group are numbers, noisy is a share of the documents
COLUMNS = (
    *('source', 'group', 'step', 'id', 'sample', 'question', 'answer', 'status'),
    *('score', 'em', 'f1', 'advantage', 'searches', 'noisy', 'tokens'),
)
BODY = ('golden_answers', 'searches', 'segments')
TOGETHER = 32  # bodies that are compressed together


def write(workdir: pathlib.Path, step: int | None = None, beside: Sequence[pathlib.Path] = ()) -> pathlib.Path:
    """Writes WORKDIR/index.html; returns its path.

    Args:
      workdir: of a run, running or finished.
      step: the last step that is shown; None: all steps.
      beside: other runs whose curves are shown too.

    Raises:
      FileNotFoundError: there is no run, or one in `beside` has no curves.
      ValueError: a row is not one that a run writes, or all are of steps after `step`.
    """
    sources = {
        name: rows for name, found in _sources(workdir).items() if (rows := [row for row in found if _shown(row, step)])
    }
    written, series = _measured(workdir, step)
    others = [(str(other), _measured(other, step)[1]) for other in beside]
    if missing := [name for name, found in others if not found]:
        raise FileNotFoundError(
            f'{missing[0]} has no curves: nothing in metrics.jsonl; give the --workdir of a training'
        )
    config = settings.parse_json(settings.to_json(_json(workdir / 'config.json')))  # an old file may contain keys
    summary = _json(workdir / 'summary.json') if step is None else {}
    if not sources and not series:
        if step is not None and (later := _measured(workdir, None)[0]):
            raise ValueError(
                f'--step={step}: the first row of {workdir} is of step {min(row["step"] for row in later)}'
            )
        raise FileNotFoundError(
            f'{workdir} holds no run: nothing in metrics.jsonl, trajectories.jsonl, evaluation/ or results.jsonl; '
            'give the --workdir of a training or of an evaluation'
        )
    rows = [row for found in sources.values() for row in found]
    facts = {
        'name': workdir.resolve().name,
        'about': _about(config, written),
        'headline': _headline(summary, series),
        'config': config,
        'panels': _panels(series),
        'series': series,
        'beside': others,
        'evaluations': [_scores(name, found) for name, found in sources.items() if name != 'training'],
        'sources': [*sources],
        'columns': COLUMNS,
        'rows': _index(sources),
        'together': TOGETHER,
    }
    path = workdir / 'index.html'
    path.write_text(page(facts, rows), 'utf-8', 'replace', newline='\n')
    return path


def page(facts: dict, rows: Sequence[dict]) -> str:
    """The HTML of a run, from the facts of its overview and the rows of its trajectories."""
    template = pathlib.Path(__file__).with_name('view.html').read_text('utf-8')
    script, style = (re.search(f'<{tag}>(.*?)</{tag}>', template, re.DOTALL)[1] for tag in ('script', 'style'))
    bodies = [rows[i : i + TOGETHER] for i in range(0, len(rows), TOGETHER)]
    filled = {
        'policy': f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        'title': html.escape(f'{facts["name"]}: a run'),
        'facts': _dumps(facts),
        'bodies': '\n'.join(f'<script type="text/plain" class="bodies">{_pack(part)}</script>' for part in bodies),
    }
    return re.sub(r'\{\{(\w+)\}\}', lambda match: filled[match[1]], template)


def _hash(text: str) -> str:
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _dumps(value) -> str:
    """JSON for a script element: ASCII, without anything that could end the element or begin a comment."""
    return json.dumps(jsonl.as_json(value), allow_nan=False, separators=(',', ':')).replace('<', '\\u003c')


def _pack(rows: Iterable[dict]) -> str:
    text = _dumps([{key: row[key] for key in BODY} for row in rows])
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


# ---------------------------------------------------------------- what a run wrote


def _read(path: pathlib.Path) -> list[dict]:
    return jsonl.read_jsonl(path) if path.is_file() else []


def _shown(row: dict, step: int | None) -> bool:
    return step is None or row.get('step', 0) <= step


def _measured(workdir: pathlib.Path, step: int | None) -> tuple[list[dict], dict]:
    """Rows of metrics.jsonl, and the curves that they make."""
    rows = [row for row in _read(workdir / 'metrics.jsonl') if _shown(row, step)]
    return rows, {key: points for key, points in curves.series_of(rows).items() if key != 'step'}


def _json(path: pathlib.Path) -> dict:
    return settings.read_json(path) if path.is_file() else {}


def _sources(workdir: pathlib.Path) -> dict[str, list[dict]]:
    """Trajectories by source: the training, one of its evaluations, or a method with a question set."""
    sources = {'training': _read(workdir / 'trajectories.jsonl')}
    for number, found in report.evaluations(workdir).items():
        sources[f'evaluation after step {number}'] = found
    sources |= _answers(_read(workdir / 'results.jsonl'))
    for name, found in sources.items():
        for row in found:
            missing = [key for key in (*BODY, 'id', 'question', 'answer', 'status', *METRICS) if key not in row]
            if missing:
                raise ValueError(f'{workdir}: a row of {name} is no trajectory, it has no {missing[0]!r}')
    return {name: found for name, found in sources.items() if found}


def _answers(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Answers by method, question set and, if the method had several, weights; the last one to each question."""
    weights = collections.defaultdict(set)
    for row in rows:
        weights[row.get('method')].add(row.get('weights'))
    found = collections.defaultdict(dict)
    for row in rows:
        keys = ('method', 'dataset', 'weights') if len(weights[row.get('method')]) > 1 else ('method', 'dataset')
        found[', '.join(str(row.get(key)) for key in keys)][row.get('id')] = row
    return {name: [*last.values()] for name, last in found.items()}


def _index(sources: dict[str, list[dict]]) -> list[list]:
    """The row of every trajectory in the list, see COLUMNS.

    Trajectories of one group are shown side by side: in training the samples of a question, else its answers after
    several steps or by several methods.
    """
    groups: dict[tuple, int] = {}
    found = []
    for number, (name, rows) in enumerate(sources.items()):
        for row in rows:
            key = ('training', row.get('step')) if name == 'training' else ('', row.get('dataset'))
            group = groups.setdefault((*key, row['id']), len(groups))
            score = row.get('reward', row['f1'])
            # a training of an earlier version wrote one label for all documents of a search
            labels = [x for s in row['searches'] for x in s.get('labels', [s['noisy']] if name == 'training' else [])]
            noisy = float(np.mean(labels)) if labels else None
            about = [row.get('step'), row['id'], row.get('sample', 0), row['question'], row['answer'], row['status']]
            numbers = [score, row['em'], row['f1'], row.get('advantage'), len(row['searches']), noisy]
            found.append([number, group, *about, *numbers, row.get('response_tokens')])
    return found


def _panels(series: dict) -> list[dict]:
    panels = []
    for panel in PANELS:
        keys = curves.matching(panel.keys, series)
        if keys:
            twin = curves.matching(panel.twin, series)
            panels.append({'title': panel.title, 'unit': panel.unit, 'keys': keys, 'twin': twin})
    return panels


def _scores(name: str, rows: list[dict]) -> list:
    """A row of the table of evaluations: name, questions, mean scores, searches, and number of failed questions."""
    valid = counted(rows)
    means = [float(np.mean([row[key] for row in valid])) if valid else None for key in METRICS]
    return [name, len(valid), *means, _searches(valid), len(rows) - len(valid)]


def _searches(rows: list[dict]) -> float | None:
    return float(np.mean([len(row['searches']) for row in rows])) if rows else None


def _about(config: dict, written: Sequence[dict]) -> str:
    """A short description of the run, which says how much of it is shown if that is not all."""
    named = [config.get('policy', {}).get('model'), config.get('rl', {}).get('algorithm')]
    simulator = config.get('simulator', {}).get('kind')
    seed = f'seed {config["seed"]}' if 'seed' in config else None
    total = (config.get('rl') or config.get('sft') or {}).get('steps', 0)
    done = max((row['step'] for row in written), default=0)
    part = f'not finished: step {done} of {total}' if done < total else None
    return ', '.join(filter(None, [*named, simulator and f'simulator: {simulator}', seed, part]))


def _headline(summary: dict, series: dict) -> list[list[str]]:
    """The numbers at the top of the page: label, value, note."""
    tiles = []
    if reward := [(step, value) for step, value in series.get('reward/mean', []) if np.isfinite(value)]:
        tiles.append(['steps', str(reward[-1][0]), ''])
        tiles.append(['reward, last step', f'{reward[-1][1]:.3f}', f'first step {reward[0][1]:.3f}'])
    evaluated = summary.get('evaluations', {})
    for number in sorted(int(step) for step, found in evaluated.items() if found['em'])[-1:]:
        em = evaluated[str(number)]['em']
        low, high = em['interval']
        note = f'95 % interval {low:.3f} to {high:.3f}{_incomplete(evaluated[str(number)])}'
        tiles.append([f'exact match after step {number}', f'{em["mean"]:.3f}', note])
    if gain := summary.get('em_gain'):
        low, high = gain['interval']
        note = f'paired, {low:+.3f} to {high:+.3f}{_incomplete(gain)}'
        tiles.append(['gain in exact match', f'{gain["mean"]:+.3f}', note])
    if failed := summary.get('failed_searches'):
        tiles.append(['failed searches', str(failed), 'their episodes do not count'])
    if cost := summary.get('cost'):
        tiles.append(['cost', f'{cost["tokens"]:,} tokens', cost['text'].removeprefix('cost: ')])
    return tiles


def _incomplete(scored: dict) -> str:
    failed = scored.get('failed')
    return f'; incomplete: {failed} questions failed' if failed else ''
