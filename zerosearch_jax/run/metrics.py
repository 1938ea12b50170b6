"""Writes the metrics of a run: as JSON lines, and to its trackers."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from zerosearch_jax.run.curves import plot_curves
from zerosearch_jax.run.jsonl import as_json, truncate_jsonl
from zerosearch_jax.run.trackers import TrackersConfig, open_trackers
from zerosearch_jax.search.journal import on_first_process


def open_writer(
    workdir: Path, resume_step: int, trackers: TrackersConfig, prepare: Callable[[], None] = lambda: None
) -> 'MetricWriter | None':
    """A MetricWriter on process 0, after `prepare`; None on the others, on which an error there is raised too."""
    made: list[MetricWriter] = []

    def make():
        prepare()
        made.append(MetricWriter(workdir, resume_step=resume_step, trackers=trackers))

    on_first_process(make)
    return made[0] if made else None


class MetricWriter:
    """Appends JSON lines to a directory and sends the same to trackers; a resumed run never repeats a row.

    On construction, every `*.jsonl` directly in `workdir` is truncated to its rows with `step <= resume_step`: 0
    keeps an evaluation from before the training, -1 starts over. Files with other names are not touched. With several
    processes only one may have a writer.

    Args:
      workdir: created if missing.
      resume_step: the last complete step, after which the run resumes.
      trackers: the trackers to open.

    Raises:
      ValueError: an existing file has a line, other than its last, that is not a JSON object with a `step`; or as in
        trackers.WeightsAndBiases.
    """

    def __init__(self, workdir: Path, *, resume_step: int = 0, trackers: TrackersConfig = TrackersConfig()):  # noqa: B008
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._workdir.glob('*.jsonl')):
            truncate_jsonl(path, resume_step)
        self._files: dict[str, IO[str]] = {}
        self._trackers = open_trackers(self._workdir, resume_step, trackers)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row to `metrics.jsonl`. NumPy and JAX scalars are accepted; NaN and infinity become null."""
        self.append('metrics', [{'step': step, **metrics}])
        numbers = {key: number for key, value in metrics.items() if (number := as_json(value)) is not None}
        for tracker in self._trackers:
            tracker.scalars(step, numbers)

    def show(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Sends texts to the trackers."""
        for tracker in self._trackers:
            for number, text in enumerate(texts):
                tracker.text(step, f'{name}/{number}', text)

    def draw(self, step: int) -> None:
        """Draws the curves so far, and sends the figure to the trackers."""
        path = plot_curves(self._workdir)
        for tracker in self._trackers if path else ():
            tracker.image(step, 'curves', path)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to `{name}.jsonl` and flushes; if one row is not valid, none is written.

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
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
