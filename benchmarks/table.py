"""Writes the table of benchmarks/README.md from results files, one row a figure.

python -m benchmarks.table benchmarks/results/cpu.jsonl
"""

import argparse
import json
import pathlib

README = pathlib.Path(__file__).with_name('README.md')
BEGIN, END = '<!-- table: begin -->', '<!-- table: end -->'
HEAD = '| figure | result | of the limit | peak memory | device |\n|---|---|---|---|---|'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', type=pathlib.Path, nargs='+')
    args = parser.parse_args()
    rows = [json.loads(line) for path in args.results for line in path.read_text().splitlines()]
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text('\n'.join([before + BEGIN, HEAD, *map(table_row, rows), END + rest.split(END)[1]]))


def table_row(row: dict) -> str:
    share = f'{100 * row["share"]["median"]:.0f} %' if 'share' in row else ''
    memory = f'{row["peak_gib"]:.1f} GiB' if 'peak_gib' in row else ''
    return f'| {row["name"]} | {result(row)} | {share} | {memory} | {row.get("device", "")} |'


def result(row: dict) -> str:
    if 'tokens_per_second' in row:
        rate = row['tokens_per_second']
        return f'{rate["median"]:.0f} tokens/s ({rate["low"]:.0f}–{rate["high"]:.0f})'
    if 'rollout_seconds' in row:
        parts = ', '.join(f'{part} {row[f"{part}_seconds"]:.0f}' for part in ('policy', 'simulator', 'host', 'update'))
        return f'{row["seconds"]:.0f} s ({parts})'
    return f'{row["seconds"]:.1f} s'


if __name__ == '__main__':
    main()
