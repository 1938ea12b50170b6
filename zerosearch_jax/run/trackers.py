"""Trackers, besides the run's own files: TensorBoard, and Weights & Biases if a project is named.

Both have `scalars`, `text`, `image` and `close`; only one process of a run has them.
"""

import dataclasses
import html
import json
import logging
import os
import pathlib
import time
import uuid
from collections.abc import Mapping

from zerosearch_jax import progress

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrackersConfig:
    """The trackers of a run."""

    tensorboard: bool = True  # event files in tensorboard/
    wandb: str = ''  # project of Weights & Biases; '': not used


class TensorBoard:
    """Writes event files without a thread, so that an error of a full disk is raised in the caller.

    Args:
      directory: created if missing.
      resume_step: events that an interrupted run wrote for later steps are hidden.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, directory: pathlib.Path, resume_step: int):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._summary, self._event = summary, event_pb2.Event
        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(directory / 'events'), f'.{os.getpid()}')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(resume_step + 1, session_log=start)

    def _write(self, step: int, **content):
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))

    def scalars(self, step: int, numbers: Mapping[str, float]):
        for name, number in numbers.items():
            self._write(step, summary=self._summary.scalar(name, number))
        self._file.flush()

    def text(self, step: int, name: str, text: str):
        """Writes plain text, as an indented block, because TensorBoard renders Markdown."""
        block = '\n'.join(f'    {line}' for line in text.splitlines())
        self._write(step, summary=self._summary.text(name, block))

    def image(self, step: int, name: str, path: pathlib.Path):
        from matplotlib.image import imread

        pixels_HxWx4 = imread(path)
        pixels = (pixels_HxWx4[..., :3] * 255).astype('uint8')
        self._write(step, summary=self._summary.image(name, pixels, dataformats='HWC'))

    def close(self):
        self._file.close()


class WeightsAndBiases:
    """A run of a project; WORKDIR/wandb_id holds its id, so that a resumed run continues it.

    Args:
      workdir: of the run; its config.json is sent too.
      project: name of the project.

    Raises:
      ValueError: the project cannot be used; the message says what to do.
    """

    def __init__(self, workdir: pathlib.Path, project: str):
        check(project)
        import wandb

        self._wandb = wandb
        kept, config = workdir / 'wandb_id', workdir / 'config.json'
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=project,
                id=kept.read_text().strip(),
                resume='allow',
                name=workdir.resolve().name,
                dir=str(workdir),
                config=json.loads(config.read_text()) if config.exists() else {},
                settings=wandb.Settings(silent=True, console='off'),
            )
        except wandb.Error as error:
            reason = ' '.join(str(error).split()).rstrip('.')
            raise ValueError(
                f'Weights & Biases: {reason}; log in (wandb login), set WANDB_MODE=offline, or leave the project empty'
            ) from error
        mode = self._run.settings.mode
        progress.log(f'Weights & Biases: {self._run.url if mode == "online" else f"{mode}, in {workdir}/wandb"}')

    def scalars(self, step: int, numbers: Mapping[str, float]):
        """Sends numbers of a step, unless the step was sent before: a resumed run repeats steps with equal numbers."""
        self._run.log(dict(numbers), step=step)

    def text(self, step: int, name: str, text: str):
        page = self._wandb.Html(f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>', inject=False)
        self._run.log({name: page}, step=step)

    def image(self, step: int, name: str, path: pathlib.Path):
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self):
        self._run.finish()


def check(project: str):
    """Raises ValueError if a project is named and the package is missing; call it before the long work."""
    if not project:
        return
    try:
        from wandb import init  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'config names the Weights & Biases project {project!r}, but its package is missing: '
            "pip install -e '.[wandb]', or leave the project empty"
        ) from error


def open_trackers(workdir: pathlib.Path, resume_step: int, cfg: TrackersConfig) -> list:
    """Opens the configured trackers; without its package TensorBoard is left out, with a warning."""
    trackers: list = [WeightsAndBiases(workdir, cfg.wandb)] if cfg.wandb else []
    if cfg.tensorboard:
        try:
            trackers.append(TensorBoard(workdir / 'tensorboard', resume_step))
        except ImportError:
            logger.warning('tensorboardX is not installed: metrics go to metrics.jsonl only')
    return trackers
