"""The benchmarks run, and the tables of their README are those of the committed results."""

import json
import pathlib
import sys

import pytest

pytest.importorskip(
    'benchmarks.common', reason='benchmarks are not installed with the package; run from the repository'
)

from benchmarks import common, decode, table, update

RESULTS = sorted((pathlib.Path(table.__file__).parent / 'results').glob('*.jsonl'))


def test_the_tables_are_those_of_the_committed_results():
    text = table.README.read_text()
    assert RESULTS
    assert table.filled(text, RESULTS) == text


@pytest.mark.parametrize(
    'program, flags, names',
    [
        (decode, '--batches 2 --prompt 9 --new 5', ['decode, batch 2', 'prefill, batch 2']),
        (update, '--rows 2 --length 128 --groups 1 --row 1024', ['update, full rows', 'update, packed trajectories']),
    ],
)
def test_a_program_prints_a_line_a_figure(monkeypatch, capsys, program, flags, names):
    monkeypatch.setattr(sys, 'argv', ['program', '--model', 'tiny', '--repeats', '1', *flags.split()])
    monkeypatch.setattr(common, 'limits', lambda dtype: {'gflops': 100.0, 'gbs': 10.0})
    program.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['name'] for line in lines] == names
    for line in lines:
        assert line['tokens_per_second']['low'] > 0
        assert line['share']['median'] > 0
        assert line['device'] and line['compiled'] > 0
