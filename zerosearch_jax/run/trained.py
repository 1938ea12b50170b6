"""Finds the weights of a run (running or finished), the model that they belong to, and how they were trained.

runs/x                       a run's directory: its exported weights, or else its newest complete checkpoint
runs/x/checkpoints/3         one of its checkpoints; runs/x/last_good: the checkpoint that an alarm kept
runs/x/adapter.safetensors   its exported weights; the name of a shipped adapter works too
exported                     a directory that launch.export wrote, or any other model or adapter in peft's format

The weights of a checkpoint are written once, to runs/x/weights/step_000003.
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from zerosearch_jax import pretrained, progress, settings
from zerosearch_jax.policy import PolicyConfig, export_weights
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.run import checkpoint, disk
from zerosearch_jax.search.journal import on_first_process
from zerosearch_jax.weights import peft, trees

T = TypeVar('T')  # a configuration, or a section of one that has `model` and `adapter`
# fields of config.rollout that say how a policy was asked in training
PROTOCOL = ('prompt', 'prompt_format', 'max_turns', 'turn_tokens', 'observation_tokens', 'response_tokens')
PROTOCOL += ('prompt_tokens', 'template_arguments', 'grammar')
EXPORTED_STEP = 'exported.json'  # {"step": ...} of a run's exported weights: a run that is continued has newer ones


@dataclasses.dataclass(frozen=True)
class Trained:
    """Trained weights."""

    reference: str  # what config.policy.adapter or config.policy.model takes
    is_model: bool  # a model rather than an adapter
    base: str  # the model that they were trained from; '': unknown
    run: dict  # the configuration of the run; {}: unknown
    directory: pathlib.Path | None = None  # the run's directory, if they are in it
    step: int | None = None  # the step of a checkpoint

    @property
    def state(self) -> str:
        """'step 3 of 10' if the weights are not those of the run's end, else ''."""
        total = (self.run.get('rl') or self.run.get('sft') or {}).get('steps', 0)
        return f'step {self.step} of {total}' if self.step is not None and self.step < total else ''

    def policy_config(self, policy: PolicyConfig, given: Collection[str] = ()) -> PolicyConfig:
        """`policy` with these weights; an adapter is put on the model that it was trained from, if that is known.

        Args:
          policy: of the configuration.
          given: fields that were set explicitly; with 'policy.model' the adapter is put on that.
        """
        if self.is_model:
            return dataclasses.replace(policy, model=self.reference, adapter='')
        base = policy.model if 'policy.model' in given else self.base or policy.model
        return dataclasses.replace(policy, model=base, adapter=self.reference)

    def rollout_config(self, size: RolloutConfig, given: Collection[str] = ()) -> RolloutConfig:
        """`size` with protocol and budgets as they were in training, if that is known.

        Args:
          size: the configured section.
          given: fields that were set explicitly and are kept: dotted names, for example `rollout.max_turns`.
        """
        trained = self.run.get('rollout', {})
        kept = {name: trained[name] for name in PROTOCOL if name in trained and f'rollout.{name}' not in given}
        return settings.section(RolloutConfig, dataclasses.asdict(size) | kept, f'{self.reference}: config.rollout')

    def documents(self, asked: int, given: Collection[str] = ()) -> int:
        """Documents for a search: as in the training if that is known, unless set explicitly; else `asked`."""
        known = self.run.get('simulator', {}).get('documents', 0)
        return known if known and 'evaluation.documents' not in given else asked

    def asked_otherwise(self, size: RolloutConfig, documents: int, given: Collection[str]) -> str:
        """What `given` changes of how the policy was asked in training, as text; '' if nothing."""
        asked = vars(self.rollout_config(size, given)) | {'documents': self.documents(documents, given)}
        taught = vars(self.rollout_config(size)) | {'documents': self.documents(documents)}
        return ', '.join(f'{name}={asked[name]}' for name in asked if asked[name] != taught[name])


def asked_line(size: RolloutConfig, documents: int) -> str:
    """One line that says how a policy is asked."""
    return (
        f"prompt '{size.prompt}' ({size.prompt_format}), {size.max_turns} searches of {documents} documents at most, "
        f'{size.turn_tokens} tokens a turn, {size.observation_tokens} an observation, {size.response_tokens} in all'
    )


def find(reference: str, step: int | None = None) -> Trained:
    """Finds weights, on process 0, since a run that is running may change its files meanwhile.

    Args:
      reference: as above.
      step: the checkpoint of a run's directory; None: the exported weights, or the newest checkpoint.

    Raises:
      FileNotFoundError: there are no weights.
      ValueError: a step is given for something that is no run, or a checkpoint is damaged.
    """

    def fields() -> dict[str, Any]:
        found = _find(reference, step)
        return dataclasses.asdict(found) | {'directory': str(found.directory or '')}

    found = on_first_process(fields)
    return Trained(**found | {'directory': pathlib.Path(found['directory']) if found['directory'] else None})


def _find(reference: str, step: int | None = None) -> Trained:
    path = pathlib.Path(reference)
    exported = _exported(path)
    if step is None and exported and not _is_outdated(path):
        path = exported
    elif place := _checkpoints(path):
        return _of_checkpoint(*place, step)
    elif step is not None:
        raise ValueError(f'--step={step}: {reference} is no directory of a run with checkpoints')
    if (path / 'config.json').is_file():
        run = _run_beside(path) if path.name == 'model' else {}
        return Trained(str(path), True, base_of(run), run, path.parent if run else None)
    found = pretrained.find_adapter(str(path))
    if found.is_dir():
        return Trained(str(path), False, peft.base(found), {})
    run = _metadata(found)
    inside = run and not settings.changes(_run_beside(found), run, settings.MAY_CHANGE_IN_A_RUN)
    return Trained(str(path), False, base_of(run), run, found.parent if inside else None)


def _metadata(adapter: pathlib.Path) -> dict:
    """The configuration of the run that trained an adapter; {} if its metadata is something else."""
    try:
        run = settings.parse_json(trees.tree_metadata(adapter).get('config', '{}'))
    except ValueError:
        return {}
    sections = ('policy', 'model', 'rollout', 'simulator', 'sft', 'rl')
    return run if isinstance(run, dict) and all(isinstance(run.get(name, {}), dict) for name in sections) else {}


def marked(reference: str, path: pathlib.Path | None = None) -> str:
    """A reference to weights and, if they are local (at `path` or as it says), digits of a hash of their content."""
    digest = pretrained.digest(path or pathlib.Path(reference))
    return f'{reference} ({digest[:12]})' if digest else reference


def marks(*sections: Any) -> list[str]:
    """The weights that configured sections name, marked, on every process."""

    def found() -> list[str]:
        adapters = [marked(name, pretrained.find_adapter(name)) for s in sections if (name := s.adapter)]
        return [*(marked(s.model) for s in sections), *adapters]

    return on_first_process(found)


def wordings(*names: str) -> list[str]:
    """The names that are files, marked, on every process."""
    return on_first_process(lambda: [marked(name) for name in names if pathlib.Path(name).is_file()])


def resolve(section: T, where: str = 'config.policy', begun: dict[str, Any] | None = None) -> T:
    """The section with weight files in place of runs in `model` and `adapter`; other references stay as they are.

    Args:
      section: of the configuration.
      where: name of the section, for messages.
      begun: the section of a run that is resumed: it keeps the files that it began with.
    """
    return dataclasses.replace(section, **on_first_process(lambda: _files(section, where, begun or {})))


def resolved(cfg: T, *names: str) -> T:
    """The configuration with `resolve` applied to these sections."""
    return dataclasses.replace(cfg, **{name: resolve(getattr(cfg, name), f'config.{name}') for name in names})


def with_files(cfg: T, config_json: str, workdir: pathlib.Path, names: Collection[str]) -> tuple[T, str]:
    """Replaces run directories by their present weight files, since the newest weights of a running run change.

    A run in `workdir` is resumed with the files that it began with.

    Args:
      cfg: checked configuration.
      config_json: the same as JSON text.
      workdir: of the configured run.
      names: of sections with `model` and `adapter`.
    """
    path, values = workdir / 'config.json', settings.parse_json(config_json)
    begun = on_first_process(lambda: settings.read_json(path) if path.is_file() else {})
    for name in names:
        given = getattr(cfg, name)
        section = resolve(given, f'config.{name}', begun.get(name))
        if section != given:
            cfg = dataclasses.replace(cfg, **{name: section})
            values[name] |= {'model': section.model, 'adapter': section.adapter}
            progress.log(f'config.{name}: {section.adapter or section.model}')
    return cfg, json.dumps(values, indent=2, sort_keys=True)


def _files(section: Any, where: str, begun: dict[str, Any]) -> dict[str, str]:
    """The fields of the section that are replaced."""
    changed = {}
    if _is_run(section.model):
        found = _find(_kept(section.model, begun))
        if not found.is_model and section.adapter:
            raise ValueError(f'{where}.model = {section.model!r} holds an adapter; leave {where}.adapter empty')
        changed = {'model': found.reference} if found.is_model else {'model': found.base, 'adapter': found.reference}
    if _is_run(section.adapter):
        found = _find(_kept(section.adapter, begun))
        if found.is_model:
            raise ValueError(f'{where}.adapter = {section.adapter!r} holds a whole model; name it in {where}.model')
        changed['adapter'] = found.reference
    return changed


def _kept(reference: str, begun: dict[str, Any]) -> str:
    """The file inside a run's directory with which the run began, or the directory itself."""
    taken = filter(None, (begun.get('adapter'), begun.get('model')))
    return next((file for file in taken if pathlib.Path(file).is_relative_to(reference)), reference)


def _is_run(reference: str) -> bool:
    if not reference or pretrained.is_built_in(reference):  # a directory of this name is ignored
        return False
    path = pathlib.Path(reference)
    return bool(_exported(path) or _checkpoints(path))


def _exported(directory: pathlib.Path) -> pathlib.Path | None:
    """The weights that a run exported into its directory."""
    if (directory / 'adapter.safetensors').is_file():
        return directory / 'adapter.safetensors'
    return directory / 'model' if (directory / 'model' / 'config.json').is_file() else None


def note_export(directory: pathlib.Path, step: int):
    """Records the step after which a run exported its weights."""
    disk.write_text(directory / EXPORTED_STEP, json.dumps({'step': step}) + '\n')


def note_earlier_export(directory: pathlib.Path, step: int):
    """Records the same for a run of an earlier version, which is resumed after this step."""
    if _exported(directory) and not (directory / EXPORTED_STEP).is_file():
        note_export(directory, step)


def _is_outdated(directory: pathlib.Path) -> bool:
    """Whether a run was continued after it exported."""
    path = directory / EXPORTED_STEP
    if not path.is_file():
        return False
    step = settings.read_json(path).get('step')
    if type(step) is not int:
        raise ValueError(f'{path} does not say after which step the run exported; delete it')
    return max(checkpoint.complete_steps(directory / 'checkpoints'), default=0) > step


def _checkpoints(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path] | None:
    """(a run's directory, the directory of its checkpoints or of the named one), or None if `path` is neither."""
    if (path / 'checkpoints').is_dir():
        return path, path / 'checkpoints'
    if path.name == 'last_good' and path.is_dir():
        return path.parent, path
    if path.name.isdigit() and path.parent.name in ('checkpoints', 'last_good'):
        return path.parent.parent, path
    return None


def _of_checkpoint(run: pathlib.Path, place: pathlib.Path, step: int | None) -> Trained:
    if place.name.isdigit():
        step, place = int(place.name), place.parent

    def written() -> tuple[int, str]:
        there = checkpoint.complete_steps(place)
        at = max(there, default=None) if step is None else step
        if at not in there:
            held = ', '.join(map(str, there)) or 'none yet; it saves one every config.run.checkpoint_every steps'
            raise FileNotFoundError(f'{place} has no checkpoint{"" if at is None else f" of step {at}"}: it has {held}')
        try:
            return at, str(_written(run, place / str(at)))
        except (ValueError, OSError):
            if step is None and at not in checkpoint.complete_steps(place):
                return written()  # the run has newer checkpoints and deleted this one meanwhile
            raise

    step, reference = written()
    config = settings.read_json(run / 'config.json')
    return Trained(reference, reference.endswith('model'), base_of(config), config, run, step)


def _written(run: pathlib.Path, saved: pathlib.Path) -> pathlib.Path:
    """The weights of a checkpoint as files, written unless they are there and not older than the checkpoint."""
    place = run / 'weights' / f'step_{int(saved.name):06d}'
    place.parent.mkdir(exist_ok=True)
    with _locked(place.parent):
        made = _exported(place)
        return made if made and place.stat().st_mtime >= saved.stat().st_mtime else _write(run, saved, place)


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Lets one process write at a time, with a lock if the file system has locks and the directory can be written."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            fcntl.flock(stack.enter_context(open(directory / '.lock', 'a', encoding='utf-8')), fcntl.LOCK_EX)
        yield


def _write(run: pathlib.Path, saved: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    params, config = checkpoint.read_params(saved), settings.read_json(run / 'config.json')
    is_adapter = any(name.endswith('_lora_a') for name in params['layers'])
    with tempfile.TemporaryDirectory(dir=place.parent, prefix='.') as scratch:
        partial = pathlib.Path(scratch) / 'weights'
        text = json.dumps(config, indent=2, sort_keys=True)
        model = None if is_adapter else pretrained.open_model(base_of(config))
        made = export_weights(params, model, is_adapter, partial, text)
        (partial / 'config.json').write_text(text)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    return place / made.name


def _run_beside(path: pathlib.Path) -> dict:
    """The configuration of the run in whose directory the weights are; {} if there is none."""
    beside = path.parent / 'config.json'
    run = settings.read_json(beside) if beside.is_file() else {}
    return run if 'rollout' in run else {}


def base_of(run: dict) -> str:
    """The base model of a run's configuration; '' if it names none."""
    section = run.get('policy') or run.get('model') or {}  # of launch.train or launch.sft
    return section.get('model', '')
