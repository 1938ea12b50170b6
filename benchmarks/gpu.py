"""The benchmarks on one GPU of 80 GB in nine minutes at most: what matters most first, every figure written at once.

  python -m benchmarks.gpu --out benchmarks/results/gpu.jsonl
  python -m benchmarks.gpu --out /tmp/rehearsal.jsonl --model tiny      # on a CPU
  python -m benchmarks.table benchmarks/results/*.jsonl

Weights are random: nothing is downloaded. The peers need torch, transformers and trl, here or in the environment of
`--peers`. What is not run, because it failed or for want of time or of a package, has a line that says so; what the
programs said is in the file's .log.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.machine import device, figures
from benchmarks.peers.common import ratio

MEMORY = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92'}  # of the GPU for JAX; by default less
SHORT = '--dtype bfloat16 --repeats 2'
COMPARED = {  # fields that ours and a peer's line have: what is said of them, and the unit
    'with_prefill': ('', 'tokens/s'),
    'tokens_per_second': (', without prefill', 'tokens/s'),
    'seconds': ('', 's'),
}


class Sizes(NamedTuple):
    """What is measured beside a model, and how large."""

    large: str
    small: str  # of `config`
    config: str
    batches: str
    batch: int
    capacity: int
    length: int  # of a row of the update
    variants: str


SIZES = {
    'qwen2.5-1.5b': Sizes(
        *('qwen2.5-7b', 'smollm2-135m', 'configs/quickstart_gpu.py', '64 16 8 1', 64, 4608, 4096),
        '--micro 1 2 --remat none dots full',
    ),
    'tiny': Sizes('tiny', 'tiny', 'configs/tiny.py', '4 1', 4, 512, 1024, '--remat none full'),
}


class Part(NamedTuple):
    """Programs that run one after the other, each a process of its own."""

    name: str
    seconds: float  # it is killed after as many, and not begun where only half of them are left
    commands: list[list[str]]
    peer: str = ''  # whose figures they are, where they are not ours
    needs: str = ''  # packages of the peer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='JSON lines; appended to')
    parser.add_argument('--minutes', type=float, default=9)
    parser.add_argument('--model', default='qwen2.5-1.5b', choices=SIZES, help='tiny: a rehearsal')
    parser.add_argument('--only', nargs='+', help='parts by their names')
    parser.add_argument('--peers', default=sys.executable, help='Python of an environment with torch')
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    ends, made, where = time.monotonic() + 60 * args.minutes, {}, {'device': device()}
    with tempfile.TemporaryDirectory() as scratch, args.out.open('a') as out:
        planned = parts(args, scratch)
        if unknown := {*(args.only or ())} - {part.name for part in planned}:
            parser.error(f'--only {" ".join(unknown)}: there are {", ".join(part.name for part in planned)}')
        for part in planned:
            if part.name in (args.only or [part.name]):
                for line in lines(part, ends, args.out.with_suffix('.log'), made):
                    print(json.dumps(line | where), file=out, flush=True)


def parts(args, scratch: str) -> list[Part]:
    """All of it, what matters most first."""
    size, out = SIZES[args.model], shlex.quote(str(args.out))
    model, drawn, sizes = f'--model {args.model}', f'{scratch}/drawn', f'{scratch}/sizes'
    changes = f'--config.policy.model={drawn} --config.simulator.model={drawn} --config.rl.drop_zero_variance=False'

    def ours(command: str) -> list[str]:
        program, *flags = shlex.split(command)
        return [sys.executable, '-m', f'benchmarks.{program}', *flags]

    def peer(command: str) -> list[str]:
        return [args.peers, *ours(f'peers.{command} --weights {sizes}')[1:]]

    as_here = ours(f'peers.export {model} --config-only --out {sizes}')
    drawing = ours(f'peers.export --model {size.small} --talking --out {drawn}')
    rows = f'--length {size.length} --row {size.length} {size.variants}'
    step = '--group 8 --prompt 256 --new 128 --repeats 2'
    return [
        Part('decode', 150, [ours(f'decode {model} {SHORT} --batches {size.batches} --calls 16 64 1')]),
        Part('prefill', 60, [ours(f'decode {model} {SHORT} --batches {size.batch} --capacity {size.capacity}')]),
        Part('start-up', 240, [drawing, ours(f'startup --config {size.config} --steps 2 {changes}')]),
        Part('update', 150, [ours(f'update {model} {SHORT} {rows}')]),
        Part('large', 90, [ours(f'decode --model {size.large} {SHORT} --batches {size.batch}')]),
        Part(
            'transformers',
            120,
            [as_here, peer(f'transformers_batching --batch {size.batch}')],
            'transformers, continuous batching',
            'torch, transformers',
        ),
        Part('forecast', 120, [ours(f'forecast {model} --batch {size.batch} --config {size.config} --measured {out}')]),
        Part('GRPO step', 60, [ours(f'peers.grpo_step {model} --dtype bfloat16 {step}')]),
        Part('TRL', 120, [as_here, peer(f'trl_step {step}')], 'TRL', 'torch, trl'),
    ]


def lines(part: Part, ends: float, log: pathlib.Path, made: dict[str, dict]) -> Iterator[dict]:
    """The lines of a part as they come, comparisons with what was `made`, and why it was not run to its end."""
    left = ends - time.monotonic()
    python, needs = part.commands[-1][0], f'import {part.needs or "sys"}'
    try:
        if subprocess.run([python, '-c', needs], capture_output=True, check=False).returncode:
            raise SystemExit(f'no {part.needs}')
        if left < part.seconds / 2:
            raise SystemExit(f'{max(left, 0):.0f} s are left, it takes up to {part.seconds:g}')
        ends = min(ends, time.monotonic() + part.seconds)
        for command in part.commands:
            with log.open('a') as file:
                print(f'{time.strftime("%H:%M:%S")} {shlex.join(command)}', file=file, flush=True)
                for line in figures(command, seconds=ends - time.monotonic(), log=file, **MEMORY):
                    yield from beside(made.get(line['name'], {}), line, part.peer)
                    made.setdefault(line['name'], line)
    except SystemExit as why:
        said = log.read_text().splitlines()[-1:] if 'ended' in str(why) else ()
        yield {'name': part.name, 'not_run': ': '.join((str(why), *said))}


def beside(mine: dict, line: dict, peer: str) -> Iterator[dict]:
    """The line, by a name of its own where it is a peer's; and then ours over the peer's, where there is ours."""
    if not peer:
        yield line
        return
    yield {**line, 'name': f'{line["name"]}: {peer}'}
    for field, (about, unit) in COMPARED.items():
        if field in mine and field in line:
            title = f'{mine["name"]}{about}, {mine["model"]}: ours / {peer}'
            yield ratio(title, unit, *([x[field]['median']] for x in (mine, line))) | {'versions': line['versions']}


if __name__ == '__main__':
    main()
