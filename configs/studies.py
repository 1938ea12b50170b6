"""What the studies of configs/ablations/ share: an experiment, its variants, three seeds."""

from ml_collections import ConfigDict

from configs import quickstart, toy
from configs.common import no_preset


def study(variants: dict[str, dict], preset: str) -> ConfigDict:
    """A study of variants of the quickstart, long enough to tell them apart on an accelerator."""
    no_preset(preset)
    base = quickstart.get_config()
    base.rl.update(steps=48, kl=0.001, drop_zero_variance=False)
    base.rl.aggregate = ''  # as each algorithm has it
    base.evaluation.questions = 256
    return _study(base, variants)


def toy_study(variants: dict[str, dict], preset: str) -> ConfigDict:
    """A study of variants of configs/toy.py with three seeds each."""
    no_preset(preset)
    return _study(toy.get_config(), variants)


def changes(base: ConfigDict, config: ConfigDict) -> dict[str, dict]:
    """The variant of `base` that is `config`: the fields that differ, by section."""
    sections = {name: values for name, values in config.items() if isinstance(values, ConfigDict)}
    found = {
        name: {field: value for field, value in values.items() if base[name].get(field) != value}
        for name, values in sections.items()
    }
    return {name: fields for name, fields in found.items() if fields}


def _study(base: ConfigDict, variants: dict[str, dict]) -> ConfigDict:
    baseline = next(iter(variants))  # a ConfigDict does not keep their order
    return ConfigDict({'base': base, 'baseline': baseline, 'variants': variants, 'seeds': (0, 1, 2)})
