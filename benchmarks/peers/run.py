"""Our benchmarks and the same work with other libraries, alternately on this machine's CPU; one line a comparison.

python -m benchmarks.peers.run --out benchmarks/results/peers.jsonl

Makes what is missing under `--venvs` first: an environment for PyTorch, transformers and TRL, one for tunix, and the
model as a Hugging Face directory. A ratio above 1 says that ours is faster, or needs less memory; its `low` and `high`
are the extremes over the rounds, in each of which every program ran once. Nothing else should run meanwhile.
`--ours` runs our own programs alone, and writes their lines.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.common import MODEL
from benchmarks.machine import cpu, figures
from benchmarks.peers.common import STOPS, ratio

PACKAGES = {
    'torch': ('torch==2.13.0', 'transformers>=5,<6', 'trl>=1.16,<2', 'accelerate', 'datasets', 'safetensors'),
    'tunix': ('google-tunix==0.1.7', 'numpy'),  # its next version renames what tunix_step uses
}
TUNIX_BATCH = 16  # the largest one of decoding; at 64 it takes minutes
GROUP = 8


class Figure(NamedTuple):
    """A number that is compared: which line of a program's output, and which field of it."""

    title: str
    line: str
    field: str
    unit: str
    peer_line: str = ''


class Comparison(NamedTuple):
    programs: dict[str, list[list[str]]]  # 'ours' and the peers: commands
    figures: list[Figure]
    rounds: int


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = tuple(COMPARISONS)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    parser.add_argument('--only', nargs='+', default=names, choices=names)
    parser.add_argument('--rounds', type=int, default=2, help='of all comparisons but search, which has one')
    parser.add_argument('--model', default=MODEL, help='of our programs; the peers have only this one')
    parser.add_argument('--ours', action='store_true', help='our programs alone')
    parser.add_argument('--venvs', type=pathlib.Path, default='.venv-peers')
    parser.add_argument('--batches', type=int, nargs='+', default=[16, 64], help='of decode')
    parser.add_argument('--new', type=int, default=128, help='tokens of decode and step')
    parser.add_argument('--length', type=int, default=512, help='tokens of a full row of update')
    parser.add_argument('--questions', type=int, default=4, help=f'of search, with {GROUP} samples each')
    parser.add_argument('--stops', nargs='+', default=list(STOPS), choices=STOPS, help='that the peer of search has')
    args = parser.parse_args()
    if args.model != MODEL and not args.ours:
        parser.error(f'the peers have only {MODEL}: --model needs --ours')
    args.venvs, args.out = args.venvs.absolute(), args.out.absolute()
    args.venvs.mkdir(parents=True, exist_ok=True)
    if not args.ours:
        prepare(args.venvs, ['torch', *(['tunix'] if {'decode', 'step'} & {*args.only} else ())])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in args.only:
            for comparison in COMPARISONS[name](args):
                for line in own_lines(comparison) if args.ours else compare(comparison):
                    with args.out.open('a') as file:
                        file.write(json.dumps(line) + '\n')


# ---------------------------------------------------------------- environments


def prepare(directory: pathlib.Path, names: list[str]):
    """Makes the environments and exports the model, where missing."""
    for name in names:
        if not python_of(directory, name).exists():
            log(f'installing {directory / name}')
            try:
                venv.create(directory / name, with_pip=True)
                install = [python_of(directory, name), '-m', 'pip', 'install', '--quiet', *PACKAGES[name]]
                subprocess.run(install, check=True, stdout=sys.stderr)
            except subprocess.CalledProcessError:
                shutil.rmtree(directory / name, ignore_errors=True)
                raise
    if not (directory / 'smollm2' / 'model.safetensors').exists():
        run(ours('peers.export', '--out', directory / 'smollm2'))


def python_of(directory: pathlib.Path, name: str) -> pathlib.Path:
    return directory / name / 'bin' / 'python'


def ours(program: str, *flags) -> list[str]:
    return [sys.executable, '-m', f'benchmarks.{program}', *map(str, flags)]


def peer(args, environment: str, program: str, *flags) -> list[str]:
    weights = args.venvs / 'smollm2'
    command = [python_of(args.venvs, environment), '-m', f'benchmarks.peers.{program}', '--weights', weights]
    return [*map(str, command), '--repeats', '1', *map(str, flags)]


# ---------------------------------------------------------------- what is compared


def decode(args) -> Iterator[Comparison]:
    for batch in args.batches:
        flags, line = ('--batch', batch, '--new', args.new), f'decode, batch {batch}'
        programs = {
            'ours': [ours('decode', '--model', args.model, '--repeats', 1, '--batches', batch, '--new', args.new)],
            'transformers': [peer(args, 'torch', 'transformers_decode', *flags)],
        }
        if batch <= TUNIX_BATCH:
            programs['tunix'] = [peer(args, 'tunix', 'tunix_decode', *flags)]
        figures = [
            Figure(line, line, 'with_prefill', 'tokens/s'),
            Figure(f'{line}, without prefill', line, 'tokens_per_second', 'tokens/s'),
        ]
        yield Comparison(programs, figures, args.rounds)


def update(args) -> Iterator[Comparison]:
    record, trajectories = args.venvs / 'record.json', args.venvs / 'trajectories.json'
    if not record.exists():
        run(search_step(args))
    trajectories.write_text(json.dumps(json.loads(record.read_text())['trajectories']))
    packed = ('--trajectories', trajectories)
    programs = {
        'ours': [ours('update', '--model', args.model, '--repeats', 1, '--length', args.length, *packed)],
        'torch': [
            peer(args, 'torch', 'torch_update', '--length', args.length),
            peer(args, 'torch', 'torch_update', *packed),
        ],
    }
    figures = []
    for line in ('update, full rows', 'update, packed trajectories'):
        figures += [Figure(line, line, 'seconds', 's'), Figure(f'{line}, peak memory', line, 'peak_gib', 'GiB')]
    yield Comparison(programs, figures, args.rounds)


def step(args) -> Iterator[Comparison]:
    flags, line = ('--group', GROUP, '--new', args.new), 'GRPO step'
    programs = {
        'ours': [ours('peers.grpo_step', '--model', args.model, '--repeats', 1, *flags)],
        'TRL': [peer(args, 'torch', 'trl_step', *flags)],
        'tunix': [peer(args, 'tunix', 'tunix_step', *flags)],
    }
    figures = [Figure(line, line, 'seconds', 's'), Figure(f'{line}, peak memory', line, 'peak_gib', 'GiB')]
    yield Comparison(programs, figures, args.rounds)


def search(args) -> Iterator[Comparison]:
    program = peer(args, 'torch', 'transformers_search', '--record', args.venvs / 'record.json', '--update')
    program, figures = [*program, '--stops', *args.stops], []
    for how in map(STOPS.get, args.stops):
        for part, field in (('', 'seconds'), (', rollout', 'rollout_seconds'), (', update', 'update_seconds')):
            figures.append(Figure(f'search step, {how}{part}', 'search step', field, 's', f'search step, {how}'))
    yield Comparison({'ours': [search_step(args)], 'transformers': [program]}, figures, 1)


def search_step(args) -> list[str]:
    # all weights and no reference, as the peer has it
    flags = (
        '--model',
        args.model,
        '--repeats',
        1,
        '--questions',
        args.questions,
        '--group',
        GROUP,
        '--lora-rank',
        0,
        '--kl',
        0,
    )
    return ours('search_step', *flags, '--record', args.venvs / 'record.json')


COMPARISONS = {'decode': decode, 'step': step, 'search': search, 'update': update}  # update needs search's record


# ---------------------------------------------------------------- running


def own_lines(comparison: Comparison) -> Iterator[dict]:
    """What our programs print."""
    for command in comparison.programs['ours']:
        yield from run(command)


def compare(comparison: Comparison) -> Iterator[dict]:
    """Runs the programs alternately; one line a figure and peer."""
    load, found = round(os.getloadavg()[0], 2), {name: [] for name in comparison.programs}
    for _ in range(comparison.rounds):
        for name, commands in comparison.programs.items():
            found[name].append([line for command in commands for line in run(command)])
    for name in list(found)[1:]:
        for figure in comparison.figures:
            mine = [value(lines, figure.line, figure.field) for lines in found['ours']]
            theirs = [value(lines, figure.peer_line or figure.line, figure.field) for lines in found[name]]
            yield ratio(f'{figure.title}: ours / {name}', figure.unit, mine, theirs) | {
                'versions': {'ours, jax': found['ours'][0][0]['jax'], **found[name][0][0].get('versions', {})},
                'device': cpu(),
                'cores': os.cpu_count(),
                'load': load,
            }


def value(lines: list[dict], name: str, field: str) -> float:
    """The field of the line with this name, or with this name and more after a comma; of a spread, the median."""
    line = next(line for line in lines if line['name'] == name or line['name'].startswith(f'{name},'))
    return line[field]['median'] if isinstance(line[field], dict) else line[field]


def run(command: list[str]) -> list[dict]:
    """The JSON lines that a program prints on the CPU."""
    log(' '.join(command[2:]))
    variables = {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_DISABLE_PROGRESS_BARS': '1'}
    return list(figures(command, **variables))


def log(text: str):
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
