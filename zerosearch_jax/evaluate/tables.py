"""The tables and the figure of an evaluation, made from its results.jsonl alone.

Averages are over data sets, which count equally; their intervals, and those of differences, resample the questions of
each set (stratified bootstrap). Differences are paired by question; p is from a sign-flip test. A question whose search
failed enters the costs alone: it is counted, shown beside every score, and asked again by the next evaluation, whose
row replaces it.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from zerosearch_jax.evaluate.intervals import shown, sign_flip_p, stratified_means
from zerosearch_jax.evaluate.scores import counted
from zerosearch_jax.run import cost, jsonl

SCORES = {'em': 'EM', 'cover_em': 'cover-EM', 'f1': 'F1'}

Results = dict[str, dict[str, dict[str, dict]]]  # method: data set: question id: row


def read_results(workdir: pathlib.Path, weights: Mapping[str, str] | None = None) -> Results:
    """Rows of results.jsonl, for the given weights of each method or else for the weights that were run last."""
    rows = jsonl.read_jsonl(workdir / 'results.jsonl') if (workdir / 'results.jsonl').exists() else []
    wanted = {row['method']: row['weights'] for row in rows} | {m: w for m, w in (weights or {}).items() if w}
    found: Results = {}
    for row in rows:
        if row['weights'] == wanted[row['method']]:
            found.setdefault(row['method'], {}).setdefault(row['dataset'], {})[row['id']] = row
    return found


def report(workdir: pathlib.Path, methods: Sequence[str], weights: Mapping[str, str], prices: cost.PricesConfig) -> str:
    """Writes table.md, table.tex, table.json and table.png of a directory; returns the Markdown."""
    results = read_results(workdir, weights)
    order = [*methods, *(m for m in results if m not in methods)]
    datasets = list(dict.fromkeys(name for m in order for name in results.get(m, ())))
    summary = {method: summarize(results[method]) for method in order if method in results}
    asked = {name: set().union(*(results[m].get(name, ()) for m in summary)) for name in datasets}
    for method, found in summary.items():
        if any(results[method].get(name, {}).keys() != ids for name, ids in asked.items()):
            found['average'] = None  # its questions differ from those of the other averages
    text = '\n\n'.join(
        [
            _scores_table(order, datasets, summary),
            _intervals_table(order, datasets, summary),
            _differences_table(order, results),
            _cost_table(order, results, prices),
        ]
    )
    (workdir / 'table.md').write_text(text + '\n')
    (workdir / 'table.tex').write_text(_latex(order, datasets, summary))
    (workdir / 'table.json').write_text(json.dumps(summary, indent=2) + '\n')
    if summary:
        _plot(order, summary, workdir / 'table.png')
    return text


def summarize(sets: dict[str, dict[str, dict]]) -> dict:
    """One method: scores with intervals by data set and on average, and means of searches and tokens."""
    found: dict = {'datasets': {}}
    valid = {dataset: counted([*rows.values()]) for dataset, rows in sets.items()}
    for dataset, rows in sets.items():
        each = valid[dataset]
        found['datasets'][dataset] = {
            'questions': len(each),
            'failed': len(rows) - len(each),
            'searches': float(np.mean([len(row['searches']) for row in each or rows.values()])),
            'tokens': float(np.mean([row['tokens'] for row in rows.values()])),
            **{name: _with_interval([[row[name] for row in each]]) if each else None for name in SCORES},
        }
    found['failed'] = sum(one['failed'] for one in found['datasets'].values())
    values = {name: [[row[name] for row in each] for each in valid.values()] for name in SCORES}
    found['average'] = {name: _with_interval(each) for name, each in values.items()} if all(valid.values()) else None
    return found


def _with_interval(strata: Sequence[Sequence[float]]) -> dict:
    means = stratified_means(strata)
    low, high = np.quantile(means, [0.025, 0.975])
    return {'mean': float(np.mean([np.mean(s) for s in strata])), 'interval': (float(low), float(high))}


def differences(mine: dict[str, dict[str, dict]], theirs: dict[str, dict[str, dict]], name: str) -> list[list[float]]:
    """The differences of a score, question by question, for every data set that both have."""
    strata = []
    for dataset in mine:
        own, other = _scored(mine, dataset, name), _scored(theirs, dataset, name)
        if common := sorted(own.keys() & other.keys()):
            strata.append([own[i] - other[i] for i in common])
    return strata


def _scored(sets: dict[str, dict[str, dict]], dataset: str, name: str) -> dict[str, float]:
    """A score by question id, for the questions without a failed search."""
    return {row['id']: row[name] for row in counted([*sets.get(dataset, {}).values()])}


# ---------------------------------------------------------------- Markdown


def _scores_table(order, datasets, summary) -> str:
    lines = [
        'EM / cover-EM / F1, in percent; the average counts every set equally; failed questions do not count',
        '',
        f'| method | {" | ".join(datasets)} | average |',
        f'|---|{"---|" * len(datasets)}---|',
    ]
    for method in order:
        lines.append(f'| {method} | {" | ".join(_cells(summary.get(method, {}), datasets))} |')
    return '\n'.join(lines)


def _three(found: dict | None, missing: str = 'not run', failed: int = 0) -> str:
    if found is None:
        return missing
    lost = f' (incomplete: {failed} failed)' if failed else ''
    scores = [f'{100 * found[name]["mean"]:.1f}' for name in SCORES if found[name]]
    return (' / '.join(scores) or 'no result') + lost


def _cells(found: dict, datasets: Sequence[str]) -> list[str]:
    """The scores of one method for every set and on average."""
    sets = [found.get('datasets', {}).get(name) for name in datasets]
    average = _three(found['average'], 'incomplete', found['failed']) if found else 'not run'
    return [*(_three(one, failed=one['failed'] if one else 0) for one in sets), average]


def _intervals_table(order, datasets, summary) -> str:
    lines = [
        '95 % intervals (bootstrap over questions)',
        '',
        f'| method | set | questions | failed | {" | ".join(SCORES.values())} | searches | tokens |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for method in order:
        if method not in summary:
            continue
        for name in datasets:
            found = summary[method]['datasets'].get(name)
            if found:
                scores = ' | '.join(_percent(found[score]) for score in SCORES)
                lines.append(
                    f'| {method} | {name} | {found["questions"]} | {found["failed"]} | {scores} | '
                    f'{found["searches"]:.2f} | {found["tokens"]:.0f} |'
                )
        if summary[method]['average']:
            scores = ' | '.join(_percent(summary[method]['average'][score]) for score in SCORES)
            lines.append(f'| {method} | average | | | {scores} | | |')
    return '\n'.join(lines)


def _percent(found: dict | None, sign: str = '') -> str:
    return shown(found, sign, digits=1, scale=100)


def _p(strata: Sequence[Sequence[float]]) -> str:
    p = sign_flip_p(strata)
    return f'{p:.3f}' if p >= 0.001 else '<0.001'


def _differences_table(order, results: Results) -> str:
    first = next((method for method in order if method in results), '')
    lines = [
        f'Differences to {first}, paired by question, over the questions that both answered',
        '',
        f'| method | {" | ".join(f"Δ {title} | p" for title in SCORES.values())} |',
        f'|---|{"---|---|" * len(SCORES)}',
    ]
    for method in order:
        if method not in results or method == first:
            continue
        cells = []
        for name in SCORES:
            strata = differences(results[method], results[first], name)
            cells += [_percent(_with_interval(strata), '+'), _p(strata)] if strata else ['', '']
        lines.append(f'| {method} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _cost_table(order, results: Results, prices: cost.PricesConfig) -> str:
    lines = [
        'Cost: generated tokens, total time of all devices, and the price of as many searches at a search API',
        '',
        '| method | questions | searches | tokens | device-seconds | device | device $ | API $ |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for method in order:
        rows = [row for each in results.get(method, {}).values() for row in each.values()]
        if not rows:
            continue
        counted = {
            'queries': sum(len(row['searches']) for row in rows),
            'tokens': sum(row['tokens'] for row in rows),
            'device_seconds': sum(row['seconds'] * row['devices'] for row in rows),
        }
        hours = {row['device']: cost.hourly_price(prices, row['device']) for row in rows}
        own = sum(row['seconds'] * row['devices'] / 3600 * hours[row['device']] for row in rows)
        cells = [method, len(rows), *(f'{value:.0f}' for value in counted.values()), ', '.join(hours)]
        cells += [f'{own:.2f}' if all(hours.values()) else 'no price set']
        lines.append(f'| {" | ".join(map(str, cells))} | {counted["queries"] * prices.search_query:.2f} |')
    return '\n'.join(lines)


# ---------------------------------------------------------------- LaTeX and the figure


def _latex(order, datasets, summary) -> str:
    lines = [
        '% EM / cover-EM / F1 in percent; needs booktabs',
        rf'\begin{{tabular}}{{l{"c" * (len(datasets) + 1)}}}',
        r'\toprule',
        ' & '.join(['method', *map(_escaped, datasets), 'average']) + r' \\',
        r'\midrule',
    ]
    for method in order:
        lines.append(' & '.join([_escaped(method), *_cells(summary.get(method, {}), datasets)]) + r' \\')
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


def _escaped(text: str) -> str:
    return ''.join('\\' + c if c in '&%$#_{}' else c for c in text)


def _plot(order, summary, path: pathlib.Path):
    """The average scores of every method, with their intervals; no figure, nor an earlier one, if there are none."""
    from matplotlib.figure import Figure

    shown = [method for method in order if method in summary and summary[method]['average']]
    if not shown:
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(7, 0.45 * len(shown) + 1.4), layout='constrained', dpi=120)
    axes = figure.subplots()
    for number, (name, title) in enumerate(SCORES.items()):
        places = np.arange(len(shown)) + (number - 1) * 0.22
        means = np.array([summary[method]['average'][name]['mean'] for method in shown])
        low, high = np.array([summary[method]['average'][name]['interval'] for method in shown]).T
        axes.errorbar(means, places, xerr=[means - low, high - means], fmt='o', markersize=4, capsize=2, label=title)
    axes.set_yticks(np.arange(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel('average over data sets, 95 % intervals')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)


# ---------------------------------------------------------------- two evaluations


def compare(first: pathlib.Path, second: pathlib.Path) -> str:
    """Compares two result directories: the average of every method that both have, and the paired difference.

    Raises:
      ValueError: they have no method, or no question, in common.
    """
    a, b = read_results(first), read_results(second)
    common = [method for method in a if method in b]
    lines = [
        f'a: {first}, b: {second}; averages over the questions that both answered',
        '',
        '| method | score | questions | failed in a, b | a | b | b − a | p |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for method in common:
        failed = ', '.join(str(sum(len(x) - len(counted([*x.values()])) for x in of[method].values())) for of in (a, b))
        for name, title in SCORES.items():
            strata = differences(b[method], a[method], name)
            if not strata:
                continue
            theirs, mine = (_average_over(x, y, name) for x, y in ((a[method], b[method]), (b[method], a[method])))
            lines.append(
                f'| {method} | {title} | {sum(map(len, strata))} | {failed} | {100 * theirs:.1f} | {100 * mine:.1f} | '
                f'{_percent(_with_interval(strata), "+")} | {_p(strata)} |'
            )
    if len(lines) == 4:
        raise ValueError(f'{first} and {second} have no method with common questions')
    return '\n'.join(lines)


def _average_over(of: dict, other: dict, name: str) -> float:
    """The average of a score over the questions that both have."""
    means = []
    for dataset in of:
        common = _scored(other, dataset, name).keys()
        own = [score for i, score in _scored(of, dataset, name).items() if i in common]
        if own:
            means.append(np.mean(own))
    return float(np.mean(means))
