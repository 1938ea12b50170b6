"""Defaults of every experiment: the fields of the dataclasses that the sections become."""

import dataclasses

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """All sections with the defaults of zerosearch_jax.train_rl.Config; an experiment overrides what it is about."""
    from zerosearch_jax import train_rl

    return sections(train_rl.SCHEMA)


def sections(schema: dict) -> ConfigDict:
    """The sections of a program with the defaults of their dataclasses, a seed and a mesh of one device."""
    config = ConfigDict()
    config.seed = 0
    config.mesh = (1, 1, 1)  # sizes of data, fsdp, tensor; -1: the rest of the devices
    for name, kind in schema.items():
        if dataclasses.is_dataclass(kind):
            config[name] = ConfigDict(dataclasses.asdict(kind()))
    return config


def no_preset(preset: str):
    """For experiments that have none; raises KeyError, as a look-up of an unknown preset does."""
    if preset:
        raise KeyError(preset)


def published() -> ConfigDict:
    """What the experiments of ZeroSearch (arXiv 2505.04588) share, for one host of 8 accelerators of 80 GB.

    64 questions x 5 samples, 203 steps, learning rate 1e-6, k3 KL 0.001, entropy 0.001, clip 0.2, five documents from
    a fine-tuned 14B simulator at temperature 0.8. This is the `fixed` form: the KL has the right sign, REINFORCE has a
    baseline, the warm-up is short and starts above zero, and sampling is not truncated.
    """
    config = base()
    config.mesh = (1, 8, 1)
    config.data.update(train='hub:Alibaba-NLP/ZeroSearch_dataset', test='hub:Alibaba-NLP/ZeroSearch_dataset')
    config.policy.dtype = config.simulator.dtype = 'bfloat16'
    config.simulator.update(model='Alibaba-NLP/Simulation_LLM_google_14B_V2', documents=5, words=30, slots=64)
    config.simulator.update(prompt_tokens=1024, max_tokens=600, temperature=0.8)
    config.rollout.update(questions=64, group=5, max_turns=5, turn_tokens=500, observation_tokens=500)
    config.rollout.update(prompt_tokens=512, response_tokens=4096, slots=64)
    config.rl.update(steps=203, algorithm='reinforce_baseline', kl=0.001, entropy=0.001, clip=0.2)
    config.rl.update(row_length=4608, rows_per_micro=8, remat='full')
    config.optimizer.update(learning_rate=1e-6, warmup_steps=10, weight_decay=0.01)
    config.evaluation.update(questions=500, every=50, documents=5)
    config.run.checkpoint_every = 10
    return config
