"""What a run left: where its weights are, which model they belong to, and how they were trained.

runs/x                       a run's directory, with adapter.safetensors or model/ in it
runs/x/adapter.safetensors   what it exported, as also the name of a shipped adapter
exported                     what launch.export wrote, or any other model or adapter in peft's format
"""

import dataclasses
import json
import pathlib

from zerosearch_jax import pretrained, settings
from zerosearch_jax.policy import PolicyConfig
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.weights import peft, trees


@dataclasses.dataclass(frozen=True)
class Trained:
    """Weights that were trained."""

    reference: str  # what config.policy.adapter or config.policy.model takes
    is_model: bool  # a model rather than an adapter
    base: str  # the model that they were trained from; '': they do not say
    run: dict  # the configuration of the run; {}: they do not say
    directory: pathlib.Path | None = None  # of the run, if they lie in it

    def policy_config(self, policy: PolicyConfig) -> PolicyConfig:
        """`policy` with these weights, an adapter over its model."""
        place = {'model': self.reference, 'adapter': ''} if self.is_model else {'adapter': self.reference}
        return dataclasses.replace(policy, **place)

    def rollout_config(self, size: RolloutConfig, *names: str) -> RolloutConfig:
        """`size` with these fields as they were in training, where that is known."""
        trained = self.run.get('rollout', {})
        kept = {name: trained[name] for name in names if name in trained}
        return settings.section(RolloutConfig, dataclasses.asdict(size) | kept, f'{self.reference}: config.rollout')

    @property
    def documents(self) -> int:
        """Of a search of its training; 0: it does not say."""
        return self.run.get('simulator', {}).get('documents', 0)


def find(reference: str) -> Trained:
    """Finds weights.

    Raises:
      FileNotFoundError: there are none.
    """
    path = pathlib.Path(_exported(reference))
    if (path / 'config.json').is_file():
        run = _run_beside(path) if path.name == 'model' else {}
        return Trained(str(path), True, _base(run), run, path.parent if run else None)
    found = pretrained.find_adapter(str(path))
    if found.is_dir():
        return Trained(str(path), False, peft.base(found), {})
    run = json.loads(trees.tree_metadata(found).get('config', '{}'))
    inside = run and _run_beside(found) == run
    return Trained(str(path), False, _base(run), run, found.parent if inside else None)


def _exported(reference: str) -> str:
    """The weights in a run's directory; any other reference as it is."""
    directory = pathlib.Path(reference)
    if (directory / 'adapter.safetensors').is_file():
        return str(directory / 'adapter.safetensors')
    if (directory / 'model' / 'config.json').is_file():
        return str(directory / 'model')
    if (directory / 'checkpoints').is_dir():
        raise FileNotFoundError(
            f'{directory} holds no weights yet; a run exports them at its end: run its command again to finish it'
        )
    return reference


def _run_beside(path: pathlib.Path) -> dict:
    """The configuration of the run in whose directory the weights lie; {} if it is none."""
    beside = path.parent / 'config.json'
    run = json.loads(beside.read_text()) if beside.is_file() else {}
    return run if 'rollout' in run else {}


def _base(run: dict) -> str:
    section = run.get('policy') or run.get('model') or {}  # of launch.train, of launch.sft
    return section.get('model', '')
