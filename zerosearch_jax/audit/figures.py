"""Figures of audits: measures of what a simulator wrote, the table and the plot of several audits side by side."""

import json
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from zerosearch_jax.data.rows import holds_answer, normalize_answer
from zerosearch_jax.evaluate.intervals import shown, with_interval
from zerosearch_jax.run import jsonl

ENGLISH = frozenset(
    re.findall(
        r'\w+',
        'the of and in to a is was for on as by with at from that it he his an are were be which this or had has its '
        'not also but first one their after who they have been',
    )
)


def english(text: str) -> bool:
    """Whether a text looks English: Latin letters, and a tenth of its words among the most frequent ones."""
    letters = [c for c in text if c.isalpha()]
    words = re.findall(r'[a-z]+', text.lower())
    latin = sum(c.isascii() for c in letters) >= 0.9 * len(letters)
    return bool(words) and latin and sum(word in ENGLISH for word in words) >= 0.1 * len(words)


def near_copy(document: str, question: str) -> bool:
    """Whether a document adds little to the question: four fifths of its words are the question's."""
    words = normalize_answer(document).split()
    asked = set(normalize_answer(question).split())
    return sum(word in asked for word in words) >= 0.8 * len(words)


def distinct(documents: Sequence[str], n: int) -> float:
    """Distinct-n (Li et al., arXiv 1510.03055): different runs of n words among all of them; 0 without any."""
    runs = []
    for document in documents:
        words = document.lower().split()
        runs += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(runs)) / len(runs) if runs else 0.0


MEASURES: dict[str, Callable[[dict], float]] = {
    'contains': lambda row: float(any(holds_answer(text, row['golden_answers']) for text in row['documents'])),
    'read': lambda row: float(row['read']),
    'valid': lambda row: float(not row['failure'] and row['attempts'] == 1),
    'failed': lambda row: float(bool(row['failure'])),
}


def measure(answers: Sequence[dict]) -> dict:
    """All figures of an audit: of useful, of noisy requests, and the gaps between them, with bootstrap intervals."""
    parts = {label: [row for row in answers if row['noisy'] == noisy] for label, noisy in (('useful', 0), ('noisy', 1))}
    by_id = {label: {row['id']: row for row in part} for label, part in parts.items()}
    both = [i for i in by_id['useful'] if i in by_id['noisy']]
    figures: dict = {'queries': len(both)}
    names = [name for name in MEASURES if name != 'read' or 'read' in answers[0]]
    for label, part in parts.items():
        documents = [document for row in part for document in row['documents']]
        figures[label] = {
            **{name: _interval([MEASURES[name](row) for row in part]) for name in names},
            'words': _interval([len(d.split()) for d in documents]),
            'distinct_1': distinct(documents, 1),
            'distinct_2': distinct(documents, 2),
            'near_copies': _share(near_copy(d, row['question']) for row in part for d in row['documents']),
            'english': _share(map(english, documents)),
        }
    figures['gap'] = {
        name: _interval([MEASURES[name](by_id['useful'][i]) - MEASURES[name](by_id['noisy'][i]) for i in both])
        for name in names
        if name in ('contains', 'read')
    }
    return figures


def _interval(values: Sequence[float]) -> dict:
    return with_interval(values) if values else {'mean': 0.0, 'interval': (0.0, 0.0)}


def _share(flags) -> float:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else 0.0


# ---------------------------------------------------------------- report


def report(workdir: pathlib.Path, gpu_hour_price: float) -> str:
    """Writes audit.json, audit.md and audit.png of all audits in a directory; returns the table."""
    found = {}
    for path in sorted(workdir.glob('*/answers.jsonl')):
        answers = jsonl.read_jsonl(path)
        if {row['noisy'] for row in answers} == {False, True}:
            found[path.parent.name] = measure(answers)
            speed = path.parent / 'speed.json'
            if speed.exists():
                found[path.parent.name]['speed'] = json.loads(speed.read_text())
    (workdir / 'audit.json').write_text(json.dumps(found, indent=2) + '\n')
    text = table(found, gpu_hour_price)
    (workdir / 'audit.md').write_text(text + '\n')
    plot(found, workdir / 'audit.png')
    return text


def table(found: dict[str, dict], gpu_hour_price: float) -> str:
    """The figures of several audits as a Markdown table, one column an audit."""
    lines = [f'| | {" | ".join(found)} |', f'|---|{"---|" * len(found)}']

    def add(name: str, cell: Callable[[dict], str]):
        lines.append(f'| {name} | {" | ".join(cell(figures) for figures in found.values())} |')

    add('queries', lambda f: str(f['queries']))
    titles = {'contains': 'hold an answer', 'read': 'read right by the policy', 'valid': 'valid at the first attempt'}
    for name, title in titles.items():
        for label in ('useful', 'noisy', 'gap'):
            if any(name in f[label] for f in found.values()):
                add(f'{title}: {label}', lambda f, n=name, part=label: shown(f[part].get(n)))
    for label in ('useful', 'noisy'):
        add(f'failed after all attempts: {label}', lambda f, part=label: shown(f[part]['failed']))
        add(f'words a document: {label}', lambda f, part=label: f'{f[part]["words"]["mean"]:.1f}')
        add(
            f'distinct-1, distinct-2: {label}',
            lambda f, part=label: f'{f[part]["distinct_1"]:.2f}, {f[part]["distinct_2"]:.2f}',
        )
        add(f'near copies of the question: {label}', lambda f, part=label: f'{f[part]["near_copies"]:.3f}')
        add(f'in English: {label}', lambda f, part=label: f'{f[part]["english"]:.3f}')
    add('tokens/s', lambda f: f'{f["speed"]["tokens"] / f["speed"]["seconds"]:.0f}' if _has_tokens(f) else '')
    if gpu_hour_price:
        add(f'dollars for 1,000 queries at {gpu_hour_price:g} an hour', lambda f: _cost(f, gpu_hour_price))
    return '\n'.join(lines)


def _has_tokens(figures: dict) -> bool:
    return bool(figures.get('speed', {}).get('tokens'))


def _cost(figures: dict, price: float) -> str:
    speed = figures.get('speed')
    return f'{speed["seconds"] / 3600 * price / speed["queries"] * 1000:.3f}' if speed else ''


def plot(found: dict[str, dict], path: pathlib.Path):
    """Bars of the share that holds an answer, useful beside noisy, and of valid outputs, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 + 1.8 * len(found), 3.6), layout='constrained', dpi=120)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(panels, ('contains', 'valid'), ('holds an answer', 'valid at once'), strict=True):
        for offset, label, color in ((-0.2, 'useful', 'C0'), (0.2, 'noisy', '0.6')):
            values = [f[label][name] for f in found.values()]
            means = np.array([v['mean'] for v in values])
            ends = np.abs(np.array([v['interval'] for v in values]).T - means)
            places = np.arange(len(found)) + offset
            axes.bar(places, means, 0.38, yerr=ends, label=label, color=color, capsize=3, error_kw={'linewidth': 1})
        axes.set_title(title, fontsize=10, loc='left')
        axes.set_xticks(range(len(found)), list(found), fontsize=8)
        axes.set_ylim(0, 1)
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='y', alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel('share of requests')
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path)
