"""The report of a study: scores, paired differences, costs, examples and curves, from small files of its runs.

VARIANT/seed_N/metrics.jsonl    as the run wrote it
VARIANT/seed_N/summary.json     as the run wrote it; its cost
VARIANT/seed_N/answers.jsonl    answers of the last evaluation, and their scores
VARIANT/seed_N/examples.jsonl   whole episodes of the first questions of that evaluation
VARIANT/seed_N/config.json      written last: the run is done
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.evaluate.intervals import detectable, p_value, shown, with_interval
from zerosearch_jax.evaluate.report import evaluations
from zerosearch_jax.evaluate.scores import counted
from zerosearch_jax.evaluate.tables import SCORES
from zerosearch_jax.run import disk, jsonl
from zerosearch_jax.train.config import Config

LAST = 0.2  # share of the steps at the end over which the training reward is averaged
EXAMPLES = 5
ONE_RUN = 'of one run: over questions alone'
ANSWER = ('id', 'dataset', 'hops', 'step', 'answer', 'status', *SCORES, 'response_tokens')
CURVES = {
    'reward/mean': 'reward in training',
    'rollout/searches': 'searches a question',
    'rollout/noisy_share': 'noisy documents, share',
    'loss/kl': 'KL to the start, nats a token',
    'loss/entropy': 'entropy, nats a token',
    'rollout/response_tokens': 'tokens a response',
}


def save_results(run: pathlib.Path, kept: pathlib.Path, config_json: str):
    """Writes what the report needs of a finished run; its configuration last."""
    kept.mkdir(parents=True, exist_ok=True)
    (kept / 'config.json').unlink(missing_ok=True)
    if (run / 'results.jsonl').exists():  # a run of launch.evaluate
        rows = jsonl.read_jsonl(run / 'results.jsonl')
        jsonl.write_jsonl(kept / 'metrics.jsonl', [])
        disk.write_text(kept / 'summary.json', '{}')
    else:
        for name in ('metrics.jsonl', 'summary.json'):
            shutil.copyfile(run / name, kept / name)
        evaluated = evaluations(run)
        rows = evaluated[max(evaluated)] if evaluated else []
    answers = [{key: row.get(key) for key in ANSWER} | {'searches': len(row['searches'])} for row in rows]
    jsonl.write_jsonl(kept / 'answers.jsonl', answers)
    # launch.evaluate writes episodes in the order in which they end
    rows = sorted(rows, key=lambda row: hashlib.sha256(row['id'].encode()).digest())
    jsonl.write_jsonl(kept / 'examples.jsonl', rows[:EXAMPLES])
    disk.write_text(kept / 'config.json', config_json)


def is_finished(kept: pathlib.Path, config_json: str) -> bool:
    """Whether the results of a run of this configuration are there, even if settings of devices and limits differ."""
    path = kept / 'config.json'
    if not path.exists():
        return False
    texts = settings.read_json(path), settings.parse_json(config_json)
    schema = evaluation.Config if 'methods' in texts[1].get('evaluation', {}) else Config
    return not settings.changes(*(settings.with_defaults(each, schema) for each in texts), settings.MAY_CHANGE)


@dataclasses.dataclass(frozen=True)
class Runs:
    """The results of one variant, by seed."""

    answers: Mapping[int, dict[tuple[str, str], dict]]  # by data set, '' if ids are unique, and id of the question
    steps: Mapping[int, list[dict]]
    costs: Mapping[int, dict]
    examples: list[dict]  # of the first seed
    made: int  # number of runs: fewer than seeds if the variant sets its own seed
    failed: int  # number of answers whose search failed; they are not in `answers`

    @property
    def seeds(self) -> list[int]:
        return list(self.answers)

    def scores(self, name: str, seeds: Sequence[int]) -> dict[str, list[float]]:
        """{question: a score for each seed}, for the questions that all of these seeds have."""
        asked = sorted(set.intersection(*(set(self.answers[seed]) for seed in seeds))) if seeds else []
        return {question: [self.answers[seed][question][name] for seed in seeds] for question in asked}

    def curve(self, key: str) -> np.ndarray:
        """A metric [steps, seeds], for the steps that all seeds have; empty if there are none."""
        found = [[row.get(key) for row in self.steps[seed]] for seed in self.seeds]
        count = min(map(len, found)) if any(value is not None for one in found for value in one) else 0
        return np.array([one[:count] for one in found], float).T.reshape(count, len(found))

    @functools.cached_property
    def late(self) -> dict[int, float]:
        """The mean training reward of the last steps, by seed; {} without training."""
        rewards = {seed: [row['reward/mean'] for row in rows] for seed, rows in self.steps.items() if rows}
        return {seed: float(np.mean(one[-max(int(LAST * len(one)), 1) :])) for seed, one in rewards.items()}


def read_runs(places: Mapping[int, pathlib.Path]) -> Runs:
    """The results of one variant's runs.

    Args:
      places: directories by seed.
    """
    answers, steps, costs, failed = {}, {}, {}, {}
    for seed, place in places.items():
        written = jsonl.read_jsonl(place / 'answers.jsonl')
        # launch.evaluate names a set that has no name, launch.train does not: ids alone where they are enough
        unique = len({row['id'] for row in written}) == len(written)
        answers[seed] = {('' if unique else row.get('dataset') or '', row['id']): row for row in counted(written)}
        failed[place] = len(written) - len(answers[seed])  # of a run that several seeds of the study share, once
        steps[seed] = [row for row in jsonl.read_jsonl(place / 'metrics.jsonl') if 'reward/mean' in row]
        costs[seed] = json.loads((place / 'summary.json').read_text()).get('cost', {})
    first = next(iter(places.values()))
    return Runs(answers, steps, costs, jsonl.read_jsonl(first / 'examples.jsonl'), len(failed), sum(failed.values()))


def write(results: pathlib.Path, names: Sequence[str], found: Mapping[str, Runs], pairs, published=None) -> str:
    """Writes report.md, report.json and report.png; returns the text.

    Args:
      results: directory.
      names: of all variants, also of those that were not run.
      found: results of the variants that were run.
      pairs: of names; in each, the second variant is compared with the first.
      published: the scores that others published of the variants, a Published, or None.
    """
    pairs = [pair for pair in pairs if set(pair) <= set(found)]
    facts = {
        'variants': {name: _measured(runs) for name, runs in found.items()},
        'differences': {f'{b} - {a}': difference(found[a], found[b]) for a, b in pairs},
    }
    tables = [_scores_table(names, facts), _hops_table(facts), _differences_table(facts), _cost_table(found)]
    if published:
        answers = {name: [row for of in runs.answers.values() for row in of.values()] for name, runs in found.items()}
        tables.insert(0, published.table(names, answers))
    parts = [*tables, _examples(found)]
    text = '\n\n'.join(filter(None, parts))
    results.mkdir(parents=True, exist_ok=True)
    disk.write_text(results / 'report.json', json.dumps(facts, indent=2) + '\n')
    disk.write_text(results / 'report.md', text + '\n')
    if found:
        plot(found, facts, results / 'report.png')
    return text


# ---------------------------------------------------------------- figures


def _measured(runs: Runs) -> dict:
    figures: dict = {'seeds': runs.seeds, 'runs': runs.made, 'failed': runs.failed}
    for name in SCORES:
        if scores := runs.scores(name, runs.seeds):
            figures[name] = with_interval([*scores.values()], (0, 1)) | {'questions': len(scores)}
    common = runs.scores('em', runs.seeds)
    if hops := {answers[i].get('hops') for answers in runs.answers.values() for i in common} - {None}:
        figures['em_by_hops'] = {n: _of_hops(runs, n) for n in sorted(hops)}
    if runs.late:
        figures['reward'] = {'mean': float(np.mean([*runs.late.values()])), 'seeds': [*runs.late.values()]}
    return figures


def _of_hops(runs: Runs, hops: int) -> dict:
    """Exact match and searches, over the questions that need `hops` passages."""
    of = {i for answers in runs.answers.values() for i, row in answers.items() if row.get('hops') == hops}
    em = [scores for i, scores in runs.scores('em', runs.seeds).items() if i in of]
    searches = [np.mean(counts) for i, counts in runs.scores('searches', runs.seeds).items() if i in of]
    return with_interval(em, (0, 1)) | {'questions': len(em), 'searches': float(np.mean(searches))}


def difference(first: Runs, second: Runs) -> dict:
    """The difference of two variants.

    For each score, over common questions and seeds: mean, interval, p, and the difference that would be found with a
    power of 80 %. For the training reward, over common seeds: the mean and, with several seeds, its interval.
    """
    seeds = [seed for seed in second.seeds if seed in first.seeds]
    found: dict = {}
    for name in SCORES:
        mine, theirs = second.scores(name, seeds), first.scores(name, seeds)
        gaps = np.array([np.subtract(mine[i], theirs[i]) for i in mine if i in theirs])
        if gaps.size:
            found[name] = with_interval(gaps) | {'p': p_value(gaps), 'detectable': detectable(gaps)}
    if shared := [seed for seed in seeds if seed in first.late and seed in second.late]:
        gains = [second.late[seed] - first.late[seed] for seed in shared]
        found['reward'] = with_interval([gains]) if len(gains) > 1 else {'mean': gains[0]}
    return found


# ---------------------------------------------------------------- as text


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [titles, ['---'] * len(titles), *lines]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _scores_table(names: Sequence[str], facts: dict) -> str:
    lines = []
    for name in names:
        figures = facts['variants'].get(name, {})
        reward, made = '', str(figures['runs']) if figures else 'not run'
        if figures.get('failed'):
            made += f' ({figures["failed"]} answers failed)'
        if 'reward' in figures:
            each = ', '.join(f'{value:.3f}' for value in figures['reward']['seeds'])
            reward = f'{figures["reward"]["mean"]:.3f} ({each})'
        lines.append([name, made, *(shown(figures.get(score)) for score in SCORES), reward])
    counts = {figures['em']['questions'] for figures in facts['variants'].values() if 'em' in figures}
    asked = f'Scores of {" or ".join(map(str, sorted(counts)))} held-out questions' if counts else 'No evaluation'
    note = f'{asked}; 95 % intervals over questions and seeds ({ONE_RUN}).'
    return (
        _table(['variant', 'runs', *SCORES.values(), 'training reward, last fifth (each seed)'], lines) + f'\n\n{note}'
    )


def _hops_table(facts: dict) -> str:
    split = {name: figures['em_by_hops'] for name, figures in facts['variants'].items() if 'em_by_hops' in figures}
    hops = sorted({n for of in split.values() for n in of})
    if len(hops) < 2:
        return ''
    lines = [
        [name, *(f'{shown(of[n])}; {of[n]["searches"]:.2f}' if n in of else '' for n in hops)]
        for name, of in split.items()
    ]
    asked = {n: max(of[n]['questions'] for of in split.values() if n in of) for n in hops}
    titles = [f'{asked[n]} questions in need of {n} passage{"s" * (n > 1)}' for n in hops]
    return _table(['variant', *titles], lines) + '\n\nExact match, and searches a question.'


def _differences_table(facts: dict) -> str:
    if not facts['differences']:
        return ''
    lines = []
    for pair, figures in facts['differences'].items():
        cells = [cell for name in SCORES for cell in (shown(figures.get(name), '+'), _number(figures.get(name), 'p'))]
        lines.append([pair, *cells, _number(figures.get('em'), 'detectable'), shown(figures.get('reward'), '+')])
    titles = [title for name in SCORES.values() for title in (f'Δ {name}', 'p')]
    note = (
        'Paired by question and seed; intervals and p as above (of rewards: over seeds, of one run none). '
        'Detectable: the Δ EM that four such studies of five would find at the 5 % level.'
    )
    return _table(['difference', *titles, 'detectable', 'Δ training reward'], lines) + f'\n\n{note}'


def _cost_table(found: Mapping[str, Runs]) -> str:
    lines = []
    for name, runs in found.items():
        costs = [cost for cost in runs.costs.values() if cost]
        trained = [row for steps in runs.steps.values() for row in steps]
        if not costs or not trained:
            continue
        mean = {key: np.mean([cost[key] for cost in costs]) for key in ('queries', 'tokens', 'device_seconds')}
        seconds = [row['speed/rollout_seconds'] + row['speed/update_seconds'] for row in trained]
        dollars = np.mean([cost['device_dollars'] for cost in costs])
        cells = [f'{len(runs.steps[runs.seeds[0]])}', f'{mean["queries"]:.0f}', f'{mean["tokens"]:,.0f}']
        cells += [f'{np.median(seconds):.1f}', f'{mean["device_seconds"] / 3600:.2f} ({costs[0]["device"]})']
        cells += [f'${dollars:.2f}' if dollars else '-', f'${np.mean([cost["api_dollars"] for cost in costs]):.2f}']
        lines.append([name, *cells])
    titles = ['steps', 'searches', 'tokens generated', 's a step', 'device-hours', 'their price', 'at a search API']
    note = (
        'Means of a run, training only; seconds: the median. The last column: what as many searches would cost there.'
    )
    return _table(['variant', *titles], lines) + f'\n\n{note}' if lines else ''


def _examples(found: Mapping[str, Runs]) -> str:
    """The episodes of the first questions of the evaluation, for the first seed of every variant."""
    lines: list[str] = []
    asked: dict[tuple, dict[str, dict]] = {}
    for name, runs in found.items():
        for row in runs.examples:
            asked.setdefault((row['id'], row['question']), {})[name] = row
    for rows in asked.values():
        for name, row in rows.items():
            if name == next(iter(rows)):
                lines += [f'**{_plain(row["question"])}** ({_plain(" / ".join(row["golden_answers"]))})', '']
            text = ''.join(s['text'] for s in row['segments'] if s['kind'] != 'prompt')
            lines += [f'{name}, F1 {row["f1"]:.2f}:', '', *(f'    {line}' for line in text.splitlines()), '']
    head = f'## Examples\n\nThe first {EXAMPLES} held-out questions by the hash of their ids, first seed.\n\n'
    return head + '\n'.join(lines).rstrip() if lines else ''


def _plain(text: str) -> str:
    """Text without Markdown formatting."""
    return ''.join(f'\\{c}' if c in '\\`*_{}[]<>|#' else c for c in ' '.join(text.split()))


def _number(value: dict | None, key: str) -> str:
    if value is None:
        return ''
    return f'{value[key]:.3f}' if value[key] >= 0.001 else '<0.001'


def plot(found: Mapping[str, Runs], facts: dict, path: pathlib.Path):
    """Draws exact match with its interval, and a panel for each metric: mean and range over seeds for each variant."""
    from matplotlib.figure import Figure

    panels = [key for key in CURVES if any(len(runs.curve(key)) for runs in found.values())]
    columns = 4
    figure = Figure(figsize=(3.6 * columns, 3 * -(-(1 + len(panels)) // columns)), layout='constrained', dpi=110)
    axes = figure.subplots(-(-(1 + len(panels)) // columns), columns, squeeze=False).reshape(-1)
    _draw_scores(axes[0], facts['variants'])
    for place, key in zip(axes[1:], panels, strict=False):
        for number, runs in enumerate(found.values()):
            curve, color = runs.curve(key), f'C{number % 10}'
            there = np.isfinite(curve).any(1)  # a step with nothing to learn from has no loss
            steps, curve = 1 + np.flatnonzero(there), curve[there]
            if len(curve):
                style = {'linestyle': '-' if number < 10 else '--', 'linewidth': 1.4}
                place.plot(steps, np.nanmean(curve, 1), color=color, **style)
                low, high = np.nanmin(curve, 1), np.nanmax(curve, 1)
                place.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        place.set_title(CURVES[key], loc='left', fontsize=9)
        place.set_xlabel('step', fontsize=8)
    for place in axes:
        place.spines[['top', 'right']].set_visible(False)
        place.grid(alpha=0.25, linewidth=0.6)
        place.tick_params(labelsize=8)
    for place in axes[1 + len(panels) :]:
        place.set_visible(False)
    figure.savefig(path)


def _draw_scores(axes, variants: Mapping[str, dict]):
    """Draws the scores, which are also the legend: a variant's name has its colour."""
    for number, figures in enumerate(variants.values()):
        color = f'C{number % 10}'
        if 'em' in figures:
            mean, (low, high) = figures['em']['mean'], figures['em']['interval']
            axes.errorbar(mean, number, xerr=[[mean - low], [high - mean]], fmt='o', color=color, capsize=3)
    axes.set_yticks(range(len(variants)), variants, fontsize=8)
    for number, label in enumerate(axes.get_yticklabels()):
        label.set_color(f'C{number % 10}')
    axes.invert_yaxis()
    axes.set_title('exact match, held out', loc='left', fontsize=9)
