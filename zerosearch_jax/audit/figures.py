"""The table and the plot of several audits side by side."""

import json
import pathlib
from collections.abc import Callable

import numpy as np

from zerosearch_jax.audit.measures import COPIED
from zerosearch_jax.evaluate.intervals import shown

# {heading: {measure: title}}; a measure has a row for each group of audit/measures.py that contains it
TABLE = {
    'The query does not say the answer': {
        'contains': 'hold an answer',
        'hop_answer': 'asked for a hop on the way, hold its own answer',
        'final_answer': 'asked for a hop on the way, hold the final answer',
    },
    'The query says the answer': {'contains_in_query': 'hold an answer'},
    'All queries': {'read': 'read right by the policy', 'mislabelled': 'not as labelled after all attempts'},
    'Form and cost': {'valid': 'valid at the first attempt', 'attempts': 'attempts', 'failed': 'failed for good'},
    'About the query': {'query_words': 'its words found', 'reciprocal_rank': 'reciprocal rank', 'rank': 'BM25 rank'},
    'Variety': {'distinct_1': 'distinct-1', 'distinct_2': 'distinct-2', 'near_copies': 'near copies of the question'},
    'Language': {'words': 'words a document', 'english': 'in English'},
    'Copies of training passages': {'longest_run': 'longest run', 'copies': f'runs of {COPIED} words or more'},
}
GROUPS = ('useful', 'noisy', 'gap', 'real', 'useful / real', 'noisy / real')
COUNTS = {
    'contains': 'the query does not say the answer',
    'hop_answer': 'of them, the query asks for a hop on the way',
    'contains_in_query': 'the query says the answer',
}
PANELS = {'contains': 'holds an answer', 'valid': 'valid at once', 'query_words': "query's words found"}


def report(workdir: pathlib.Path, gpu_hour_price: float) -> str:
    """Writes audit.json, audit.md and audit.png of all audits in a directory that have figures; returns the table."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(workdir.glob('*/figures.json'))}
    (workdir / 'audit.json').write_text(json.dumps(found, indent=2) + '\n')
    text = table(found, gpu_hour_price)
    (workdir / 'audit.md').write_text(text + '\n')
    plot(found, workdir / 'audit.png')
    return text


def table(found: dict[str, dict], gpu_hour_price: float) -> str:
    """The figures of several audits as a Markdown table, one column for each audit."""
    lines = [f'| | {" | ".join(found)} |', f'|---|{"---|" * len(found)}']

    def add(name: str, cell: Callable[[dict], str] = lambda figures: ''):
        lines.append(f'| {name} | {" | ".join(map(cell, found.values()))} |')

    add('**Queries**', lambda f: str(f['queries']))
    for name, title in COUNTS.items():
        add(title, lambda f, name=name: str(_count(f, name)))
    judged = ('contains', 'contains_in_query')
    add('not judged, an answer is yes or no', lambda f: str(f['queries'] - sum(_count(f, name) for name in judged)))
    for heading, titles in TABLE.items():
        rows = [(name, group) for name in titles for group in GROUPS if any(name in f[group] for f in found.values())]
        if rows:
            add(f'**{heading}**')
        for name, group in rows:
            add(f'{titles[name]}: {group}', lambda f, name=name, group=group: _cell(f[group].get(name)))
    add('**Speed**, tokens/s', _speed)
    if gpu_hour_price:
        add(f'dollars for 1,000 queries at {gpu_hour_price:g} an hour', lambda f: _cost(f, gpu_hour_price))
    return '\n'.join(lines)


def _count(figures: dict, name: str) -> int:
    return figures['useful'].get(name, {'count': 0})['count']


def _cell(figure: dict | None) -> str:
    return shown(figure, digits=1 if figure and figure['mean'] >= 10 else 3)


def _speed(figures: dict) -> str:
    speed = figures.get('speed', {})
    return f'{speed["tokens"] / speed["seconds"]:.0f}' if speed.get('tokens') else ''


def _cost(figures: dict, price: float) -> str:
    speed = figures.get('speed')
    return f'{speed["seconds"] / 3600 * price / speed["queries"] * 1000:.3f}' if speed else ''


def plot(found: dict[str, dict], path: pathlib.Path):
    """Draws three shares as bars with 95 % intervals, useful beside noisy, and those of real results as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 2 * max(len(found), 3), 3.6), layout='constrained', dpi=120)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for offset, group, color in ((-0.2, 'useful', 'C0'), (0.2, 'noisy', '0.6')):
            values = [f[group].get(name) or {'mean': 0.0, 'interval': (0.0, 0.0)} for f in found.values()]
            means = np.array([v['mean'] for v in values])
            ends = np.abs(np.array([v['interval'] for v in values]).T - means)
            places = np.arange(len(found)) + offset
            axes.bar(places, means, 0.38, yerr=ends, label=group, color=color, capsize=3, error_kw={'linewidth': 1})
        real = [f['real'].get(name, {'mean': np.nan})['mean'] for f in found.values()]
        axes.hlines(real, np.arange(len(found)) - 0.45, np.arange(len(found)) + 0.45, color='C3', label='real results')
        axes.set_title(title, fontsize=10, loc='left')
        axes.set_xticks(range(len(found)), list(found), fontsize=8)
        axes.set_ylim(0, 1)
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='y', alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel('share')
    labels = panels[0].get_legend_handles_labels()
    figure.legend(*labels, frameon=False, fontsize=8, loc='outside lower center', ncols=3)
    figure.savefig(path)
