"""Defaults of every experiment: the fields of the dataclasses that the sections become."""

import dataclasses

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """All sections with the defaults of zerosearch_jax.train_rl.Config; an experiment overrides what it is about."""
    from zerosearch_jax import train_rl

    config = ConfigDict()
    config.seed = 0
    config.mesh = (1, 1, 1)  # sizes of data, fsdp, tensor; -1: the rest of the devices
    for name, kind in train_rl.SCHEMA.items():
        if dataclasses.is_dataclass(kind):
            config[name] = ConfigDict(dataclasses.asdict(kind()))
    return config
