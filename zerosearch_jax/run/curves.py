"""The figure of a run: curves.png from metrics.jsonl."""

import collections
import dataclasses
import fnmatch
import itertools
import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zerosearch_jax.run.jsonl import read_jsonl

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small chart: its metrics as patterns of keys, their unit, and the metrics on its right-hand axis."""

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


def plot_curves(
    *workdirs: Path, path: Path | None = None, last: int | None = None, titles: Collection[str] = ()
) -> Path | None:
    """Draws `curves.png` from `metrics.jsonl`, one panel of `PANELS` for each that has data.

    Args:
      workdirs: of one run, or of several, which share the panels: each run has a colour, each metric a line style.
      path: of the figure; None: `curves.png` in the first of them.
      last: the last step that is drawn; None: all steps.
      titles: of the panels that are drawn; (): all panels.

    Returns:
      the path of the figure, or None if there is nothing to draw or matplotlib is not installed.
    """
    short = {workdir.resolve().name for workdir in workdirs}
    names = [workdir.name if len(short) == len(workdirs) else str(workdir) for workdir in workdirs]
    runs = {name: _series(workdir / 'metrics.jsonl', last) for name, workdir in zip(names, workdirs, strict=True)}
    wanted = [panel for panel in PANELS if not titles or panel.title in titles]
    panels = [panel for panel in wanted if any(matching(panel.keys, series) for series in runs.values())]
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
    figure.suptitle(' and '.join(workdir.resolve().name for workdir in workdirs), fontweight='bold')
    steps = [step for series in runs.values() for points in series.values() for step, _ in points]
    pad = max(0.5, 0.02 * (max(steps) - min(steps)))
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw(axes, panel, runs)
        axes.set_xlim(min(steps) - pad, max(steps) + pad)
    path = path or workdirs[0] / 'curves.png'
    figure.savefig(path)
    return path


def _series(source: Path, last: int | None) -> dict[str, list[tuple[int, float]]]:
    rows = read_jsonl(source) if source.is_file() else []
    return series_of([row for row in rows if last is None or row['step'] <= last])


def _draw(axes: Any, panel: Panel, runs: Mapping[str, dict[str, list[tuple[int, float]]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(panel.title, fontsize=10, loc='left')
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_xlabel('step', fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    lines, (series, *others) = [], runs.values()
    if others:
        for number, (name, each) in enumerate(runs.items()):
            keys = matching(panel.keys, each)
            for key, style in zip(keys, itertools.cycle(('-', '--', ':', '-.'))):
                label = name if len(keys) == 1 else f'{name}: {key.partition("/")[2]}'
                lines.append(_line(axes, each[key], label, f'C{number}', style))
    else:
        keys, twin_keys = matching(panel.keys, series), matching(panel.twin, series)
        lines += [_line(axes, series[key], key.partition('/')[2], f'C{i}') for i, key in enumerate(keys)]
        if twin_keys:
            right = axes.twinx()
            right.spines['top'].set_visible(False)
            right.tick_params(labelsize=8, colors='0.45')
            right.set_ylim(0, 1)
            lines += [_line(right, series[k], f'{k.partition("/")[2]} (right)', '0.45', '--') for k in twin_keys]
    if len(lines) > 1:  # a single line is named by the title
        axes.legend(handles=lines, fontsize=7, frameon=False)


def _line(axes: Any, points: list[tuple[int, float]], label: str, color: str, linestyle: str = '-') -> Any:
    steps, values = zip(*points, strict=True)
    marker = 'o' if sum(map(math.isfinite, values)) <= 25 else ''  # few points need markers
    (line,) = axes.plot(
        steps, values, color=color, linestyle=linestyle, marker=marker, markersize=3, linewidth=1.4, label=label
    )
    return line


def series_of(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """{key: [(step, value)]} in the order of steps, with the last value of each step; null is NaN, a gap."""
    series = collections.defaultdict(dict)
    for row in sorted(rows, key=lambda row: row['step']):
        for key, value in row.items():
            if value is None or isinstance(value, int | float):
                series[key][row['step']] = math.nan if value is None else float(value)
    return {key: [*points.items()] for key, points in series.items() if any(map(math.isfinite, points.values()))}


def matching(patterns: tuple[str, ...], series: Mapping[str, Any]) -> list[str]:
    return [key for pattern in patterns for key in fnmatch.filter(series, pattern)]
