"""What a run writes while it trains: metrics as JSON lines and on boards, and a figure of the curves."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from zerosearch_jax import settings, sharding
from zerosearch_jax.boards import open_boards

logger = logging.getLogger(__name__)


def claim(
    workdir: Path,
    resolved: str,
    results: Sequence[str] = ('metrics.jsonl', 'evaluation'),
    free: Sequence[str] = settings.FREE,
) -> None:
    """Makes `workdir` the place of the run with this configuration (JSON text), or checks that it is.

    A run that wrote none of its `results` yet, say because its data was not found, does not hold the place. Fields in
    `free`, dotted names, may differ.

    Raises:
      ValueError: it holds a run with another configuration.
    """
    path = workdir / 'config.json'
    begun = any((workdir / name).exists() for name in results)
    if begun and path.exists() and (changed := settings.changed(path.read_text(), resolved, free)):
        raise ValueError(
            f'{workdir} holds a run with another configuration (it differs in {", ".join(changed)}); '
            'choose another --workdir, or delete it to start over'
        )
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        partial = path.with_name(f'.{path.name}.partial')
        partial.write_text(resolved)
        os.replace(partial, path)


class MetricWriter:
    """Appends JSON lines to a directory and shows the same on boards; a resumed run never repeats a row.

    On construction every `*.jsonl` directly in `workdir` is cut back to its rows with `step <= resume_step`: 0
    keeps an evaluation made before training, -1 starts over. Files with other names are left alone. With many
    processes only one may hold a writer.

    Args:
      workdir: created if missing.
      resume_step: the last finished step that the run continues from.
      tensorboard: also write event files to `workdir/tensorboard`, if tensorboardX is installed.
      wandb: project of Weights & Biases; '': not used.

    Raises:
      ValueError: an existing file holds a line, not its last, that is not a JSON object with a `step`; or as
        boards.WeightsAndBiases.
    """

    def __init__(self, workdir: Path, *, resume_step: int = 0, tensorboard: bool = True, wandb: str = '') -> None:
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._workdir.glob('*.jsonl')):
            _truncate(path, resume_step)
        self._files: dict[str, IO[str]] = {}
        self._boards = open_boards(self._workdir, resume_step, tensorboard, wandb)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row to `metrics.jsonl`. Scalars of NumPy and JAX are taken; NaN and infinity become null."""
        self.append('metrics', [{'step': step, **metrics}])
        numbers = {key: number for key, value in metrics.items() if (number := as_json(value)) is not None}
        for board in self._boards:
            board.scalars(step, numbers)

    def show(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Shows texts on the boards."""
        for board in self._boards:
            for number, text in enumerate(texts):
                board.text(step, f'{name}/{number}', text)

    def draw(self, step: int) -> None:
        """Draws the curves so far, and shows them on the boards."""
        path = plot_curves(self._workdir)
        for board in self._boards if path else ():
            board.image(step, 'curves', path)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to `{name}.jsonl` and flushes: all of them, or none if one is not valid.

        Raises:
          ValueError: a row without an integer `step`, or a name that is a path.
        """
        if Path(name).name != name:
            raise ValueError(f'name must be a plain file name, got {name!r}')
        plain = [as_json(row) for row in rows]
        for row in plain:
            if type(row.get('step')) is not int:
                raise ValueError(f'every row of {name}.jsonl needs an integer step, got {row.get("step")!r}')
        if name not in self._files:
            self._files[name] = open(self._workdir / f'{name}.jsonl', 'a', encoding='utf-8')  # noqa: SIM115
        self._files[name].write(''.join(json.dumps(row, allow_nan=False) + '\n' for row in plain))
        self._files[name].flush()

    def close(self) -> None:
        """Closes every file. Closing twice is harmless."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        for board in self._boards:
            board.close()
        self._boards = []

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a JSON-lines file, without a last line torn by a crash.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line other than the last is not a JSON object.
    """
    return [row for _, row in _rows(Path(path))]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a whole JSON-lines file at once: a crash leaves either nothing or all of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    with open(partial, 'w', encoding='utf-8') as file:
        file.writelines(json.dumps(as_json(row), allow_nan=False) + '\n' for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a JSON-lines file, made if missing; see `recover_jsonl`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8') as file:
        file.write(''.join(json.dumps(as_json(row), allow_nan=False) + '\n' for row in rows))


def recover_jsonl(path: str | Path) -> list[dict]:
    """The rows of a file that `append_jsonl` writes, if it is there; a last line that a crash tore is cut off."""
    if not Path(path).exists():
        return []
    rows = read_jsonl(path)
    write_jsonl(path, rows)
    return rows


def shared_jsonl(path: str | Path) -> list[dict]:
    """What `recover_jsonl` finds on process 0, on all processes."""
    return sharding.from_first_process(recover_jsonl(path) if jax.process_index() == 0 else None)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small chart: the metrics it shows, as patterns of keys, their unit, and those on its right-hand axis."""

    title: str
    keys: tuple[str, ...]
    unit: str
    twin: tuple[str, ...] = ()


PANELS = (
    Panel('Reward', ('reward/mean',), 'reward', twin=('rollout/noise',)),
    Panel('Answers in training', ('reward/em', 'reward/cover_em', 'reward/f1'), 'score'),
    Panel('Evaluation: exact match', ('eval/em', 'eval/*/em'), 'share of questions'),
    Panel('Evaluation: F1', ('eval/f1', 'eval/*/f1'), 'score'),
    Panel('Searches per question', ('rollout/searches',), 'searches', twin=('rollout/noise',)),
    Panel('Response tokens', ('rollout/response_tokens',), 'tokens'),
    Panel('KL to the reference', ('loss/kl',), 'nats a token'),
    Panel('Entropy', ('loss/entropy',), 'nats a token'),
    Panel('Loss', ('loss/loss', 'loss/policy', 'loss/value_loss', 'loss/nll', 'loss/held_out'), 'loss'),
    Panel('Tokens per second', ('speed/tokens_per_second',), 'tokens a second'),
)


def plot_curves(workdir: str | Path) -> Path | None:
    """Draws `curves.png` from `metrics.jsonl`, one panel of `PANELS` for each that has data.

    Returns the path of the figure, or None if there is nothing to draw or matplotlib is not installed.
    """
    workdir = Path(workdir)
    source = workdir / 'metrics.jsonl'
    series = series_of(read_jsonl(source)) if source.is_file() else {}
    panels = [panel for panel in PANELS if matching(panel.keys, series)]
    if not panels:
        return None
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ImportError:
        logger.warning('matplotlib is not installed: no curves.png')
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.7 * rows + 0.4), layout='constrained', dpi=120)
    figure.suptitle(workdir.resolve().name, fontweight='bold')
    steps = [step for points in series.values() for step, _ in points]
    pad = max(0.5, 0.02 * (max(steps) - min(steps)))
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw(axes, panel, series)
        axes.set_xlim(min(steps) - pad, max(steps) + pad)
    path = workdir / 'curves.png'
    figure.savefig(path)
    return path


def _draw(axes: Any, panel: Panel, series: dict[str, list[tuple[int, float]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    keys, twin_keys = matching(panel.keys, series), matching(panel.twin, series)
    axes.set_title(panel.title, fontsize=10, loc='left')
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_xlabel('step', fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    lines = [_line(axes, key, series[key], color=f'C{i}') for i, key in enumerate(keys)]
    if twin_keys:
        right = axes.twinx()
        right.spines['top'].set_visible(False)
        right.tick_params(labelsize=8, colors='0.45')
        right.set_ylim(0, 1)
        lines += [_line(right, key, series[key], ' (right)', '0.45', '--') for key in twin_keys]
    if len(lines) > 1:  # a single line is named by the title
        axes.legend(handles=lines, fontsize=7, frameon=False)


def _line(
    axes: Any,
    key: str,
    points: list[tuple[int, float]],
    suffix: str = '',
    color: str = 'C0',
    linestyle: str = '-',
) -> Any:
    steps, values = zip(*points, strict=True)
    marker = 'o' if sum(map(math.isfinite, values)) <= 25 else ''  # one point makes no line
    label = key.partition('/')[2] + suffix
    (line,) = axes.plot(
        steps, values, color=color, linestyle=linestyle, marker=marker, markersize=3, linewidth=1.4, label=label
    )
    return line


def series_of(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """{key: [(step, value)]} of the numbers in the rows by rising step; null is NaN, a gap in the curve."""
    series = collections.defaultdict(list)
    for row in sorted(rows, key=lambda row: row['step']):
        for key, value in row.items():
            if value is None or isinstance(value, int | float):
                series[key].append((row['step'], math.nan if value is None else float(value)))
    return {key: points for key, points in series.items() if any(math.isfinite(v) for _, v in points)}


def matching(patterns: tuple[str, ...], series: Mapping[str, Any]) -> list[str]:
    return [key for pattern in patterns for key in fnmatch.filter(series, pattern)]


def _rows(path: Path) -> Iterable[tuple[bytes, dict]]:
    """(line without its end, parsed row) for each line; a last line that does not parse is left out."""
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):  # bytes: only a line feed ends a line
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError('not an object')
            except ValueError as error:
                if file.read(1):  # more follows, so this is not the line that a crash tore
                    raise ValueError(f'{path}:{number}: not a JSON object') from error
                return
            yield line.rstrip(b'\n'), row


def _truncate(path: Path, last_step: int) -> None:
    """Keeps the rows with step <= last_step; the file is replaced whole, so that a crash leaves old or new."""
    partial = path.with_name(f'.{path.name}.partial')
    with open(partial, 'wb') as file:
        for number, (line, row) in enumerate(_rows(path), 1):
            if type(row.get('step')) is not int:
                raise ValueError(f'{path}:{number}: a row without an integer step; move this file elsewhere')
            if row['step'] <= last_step:
                file.write(line + b'\n')
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def as_json(value: Any) -> Any:
    """The value as JSON types: arrays and their scalars as lists and numbers, NaN and infinity as None."""
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
