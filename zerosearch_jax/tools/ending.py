"""What a training prints at its end: a held-out question before and after it, and commands to try on the run."""

import itertools
import pathlib
import shlex
import shutil
import textwrap

from zerosearch_jax.evaluate import report
from zerosearch_jax.tools.screen import harmless

NARROW = 100  # columns of a terminal below which the two episodes are printed one below the other
TURNED = {(0, 1): 'became right', (1, 0): 'became wrong', (1, 1): 'stayed right', (0, 0): 'stayed wrong'}


def ending(workdir: pathlib.Path, width: int = 0) -> str:
    """The text at the end of a training.

    Args:
      workdir: of a finished run.
      width: columns; 0: those of the terminal.
    """
    width = width or shutil.get_terminal_size().columns
    evaluated = report.evaluations(workdir)
    pairs = report.paired(evaluated[0], evaluated[max(evaluated)]) if 0 in evaluated and len(evaluated) > 1 else []
    kinds = {how: [pair for pair in pairs if tuple(int(row['em']) for row in pair) == how] for how in TURNED}
    shown = next((found[0] for found in kinds.values() if found), None)
    lines = []
    if shown:
        counts = ', '.join(f'{len(kinds[how])} {name}' for how, name in TURNED.items())
        lines += [f'Of {len(pairs)} held-out questions {counts}. One of them:', '']
        lines += [*_beside(shown, width), '']
    asked = shown[0]['question'] if shown else 'Which country is the city of Osaka in?'
    return '\n'.join([*lines, *_next(workdir, asked)])


def _beside(pair: tuple[dict, dict], width: int) -> list[str]:
    """A question and its two episodes, in two columns if the terminal is wide enough."""
    before, after = pair
    golds = ' / '.join(before['golden_answers'])
    head = textwrap.wrap(harmless(f'{before["question"]}  (right: {golds})'), width)
    columns = width // 2 - 2 if width >= NARROW else width - 2
    parts = [
        [f'{title}: {"right" if row["em"] else "wrong"}', *_episode(row, columns)]
        for title, row in (('before', before), ('after', after))
    ]
    if width < NARROW:
        return [*head, *parts[0], '', *parts[1]]
    return [*head, *(f'{a:{columns}}  | {b}'.rstrip() for a, b in itertools.zip_longest(*parts, fillvalue=''))]


def _episode(row: dict, columns: int) -> list[str]:
    """The text after the prompt, wrapped."""
    text = harmless(''.join(s['text'] for s in row['segments'] if s['kind'] != 'prompt'))
    text = text.replace('</think><', '</think>\n<').replace('</search><', '</search>\n<')
    return [part for line in text.splitlines() if line.strip() for part in textwrap.wrap(line, columns)]


def _next(workdir: pathlib.Path, question: str) -> list[str]:
    """The commands to try on a run."""
    run = shlex.quote(str(workdir))
    return [
        f'Curves: {workdir / "curves.png"}; every episode, in a browser: {workdir / "index.html"}',
        'Next:',
        f'  python -m launch.ask {run} {shlex.quote(harmless(question))}',
        f'  python -m launch.view {run}',
        f'  python -m launch.export {run} exported',
    ]
