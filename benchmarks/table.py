"""Writes the tables of benchmarks/README.md from results files, one row a figure.

python -m benchmarks.table benchmarks/results/*.jsonl

Lines of comparisons have a ratio and go to a table of their own. Of lines with one name the last counts; those of what
was not run are left out.
"""

import argparse
import json
import pathlib

from benchmarks.common import MODEL

README = pathlib.Path(__file__).with_name('README.md')
OWN = '| figure | result | of the limit | programs compiled | peak memory | device |\n|---|---|---|---|---|---|'
PEERS = '| figure | ours | peer | ratio (extremes) | device |\n|---|---|---|---|---|'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', type=pathlib.Path, nargs='+')
    parser.add_argument('--page', type=pathlib.Path, default=README, help='whose tables are written')
    args = parser.parse_args()
    args.page.write_text(filled(args.page.read_text(), args.results))


def filled(text: str, results: list[pathlib.Path]) -> str:
    """The page with the tables of these results."""
    lines = [json.loads(line) for path in results for line in path.read_text().splitlines()]
    lines = [row for row in lines if 'not_run' not in row]
    rows = list({(row['name'], row.get('model'), row.get('device')): row for row in lines}.values())
    text = replaced(text, 'table', OWN, [own(row) for row in rows if 'ratio' not in row])
    return replaced(text, 'peers', PEERS, [beside(row) for row in rows if 'ratio' in row])


def replaced(text: str, name: str, head: str, rows: list[str]) -> str:
    """The text with other rows between the two comments of a table."""
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    before, rest = text.split(begin)
    return '\n'.join([before + begin, head, *rows, end + rest.split(end)[1]])


def own(row: dict) -> str:
    share = f'{100 * row["share"]["median"]:.0f} %' if 'share' in row else ''
    memory = f'{row["peak_gib"]:.1f} GiB' if 'peak_gib' in row else ''
    compiled = f'{row["compiled"]} in {row["compile_seconds"]:.0f} s' if 'compiled' in row else ''
    name = row['name'] if row.get('model', MODEL) == MODEL else f'{row["name"]}, {row["model"]}'
    return f'| {name} | {result(row)} | {share} | {compiled} | {memory} | {row.get("device", "")} |'


def result(row: dict) -> str:
    if 'to_measured' in row:
        return f'{row["to_measured"]:.2f} x the measured seconds'
    if 'tokens_per_second' in row:
        return spread(row['tokens_per_second'], 'tokens/s')
    if 'host_seconds' in row:
        parts = ('policy', 'simulator', 'both', 'host', 'update')
        parts = ', '.join(f'{part} {row[f"{part}_seconds"]:.0f}' for part in parts if f'{part}_seconds' in row)
        return f'{row["seconds"]:.0f} s ({parts})'
    if 'call_ms' in row:
        return f'{row["call_ms"]:.3g} ms a call, {row["token_ms"]:.3g} ms a token'
    if 'to_shallow' in row:
        return f'{row["seconds"]:.1f} s, {row["to_shallow"]:.2f} x that of 4 layers'
    return f'{row["seconds"]:.1f} s'


def beside(row: dict) -> str:
    ratio = row['ratio']
    figures = (spread(row[who], row['unit']) for who in ('ours', 'peer'))
    extremes = f' ({ratio["low"]:.2f}–{ratio["high"]:.2f})' if row['rounds'] > 1 else ''
    return f'| {row["name"]} | {" | ".join(figures)} | {ratio["median"]:.2f}{extremes} | {row["device"]} |'


def spread(values: dict, unit: str) -> str:
    """Median with its extremes, where they differ."""
    low, median, high = (short(values[name]) for name in ('low', 'median', 'high'))
    return f'{median} {unit}' if low == high else f'{median} {unit} ({low}–{high})'


def short(value: float) -> str:
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


if __name__ == '__main__':
    main()
