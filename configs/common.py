"""Defaults of every experiment: the fields of the dataclasses that the sections become."""

import dataclasses
import typing

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """All sections with the defaults of train.config.Config; an experiment overrides what it is about."""
    from zerosearch_jax.train import config as train_config

    return sections(train_config.Config)


def sections(cls: type) -> ConfigDict:
    """The sections of a program's Config with the defaults of their dataclasses, a seed and a mesh of one device."""
    config = ConfigDict()
    config.seed = 0
    config.mesh = (1, 1, 1)  # sizes of data, fsdp, tensor; -1: the rest of the devices
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            config[name] = ConfigDict(dataclasses.asdict(kind()))
    return config


def simulator() -> dict:
    """The fields of config.simulator that belong to the adapter that ships: configs/sft_searches.py taught it so."""
    return {'adapter': 'search_simulator', 'template': 'told', 'blind_noise': True, 'words': 30}


def no_preset(preset: str):
    """For experiments that have none; raises KeyError, as a look-up of an unknown preset does."""
    if preset:
        raise KeyError(preset)


def experiment(preset: str, base: str, **curriculum: float) -> ConfigDict:
    """An experiment of ZeroSearch by the words of its preset, joined by '_': 'base' or 'instruct', and keys of FORMS.

    Args:
      preset: say 'instruct' or 'paper_instruct_r1'; KeyError where a word is unknown.
      base: the policy's base model; the instructed one has a longer name.
      curriculum: of the model.
    """
    words = set(preset.split('_'))
    if unknown := words - {'base', 'instruct'} - FORMS.keys():
        raise KeyError(*unknown)
    config = published()
    config.policy.model = f'{base}-Instruct' if 'instruct' in words else base
    config.rollout.prompt_format = 'chat' if 'instruct' in words else 'raw'
    config.curriculum.update(curriculum)
    for word, form in FORMS.items():
        if word in words:
            form(config)
    return config


def published() -> ConfigDict:
    """What the experiments of ZeroSearch (arXiv 2505.04588) share, for one host of 8 accelerators of 80 GB.

    64 questions x 5 samples, 203 steps, learning rate 1e-6, k3 KL 0.001, entropy 0.001, clip 0.2, five documents from
    a fine-tuned 14B simulator at temperature 0.8; evaluations ask a retriever over Wikipedia. This is the `fixed` form:
    the KL has the right sign, REINFORCE has a baseline, the warm-up is short and starts above zero, and sampling is not
    truncated.
    """
    config = base()
    config.mesh = (1, 8, 1)
    config.data.update(train='hub:Alibaba-NLP/ZeroSearch_dataset', test='hub:Alibaba-NLP/ZeroSearch_dataset')
    config.engine.kind = 'search_r1'  # at config.engine.url; the built-in corpus does not answer these questions
    config.policy.dtype = config.simulator.dtype = 'bfloat16'
    config.simulator.update(model='Alibaba-NLP/Simulation_LLM_google_14B_V2', documents=5, words=30)
    config.simulator.update(prompt_tokens=1024, max_tokens=600, temperature=0.8)
    config.rollout.update(questions=64, group=5, max_turns=5, turn_tokens=500, observation_tokens=500)
    config.rollout.update(prompt_tokens=512, response_tokens=4096)
    config.rl.update(steps=203, algorithm='reinforce_baseline', kl=0.001, entropy=0.001, clip=0.2)
    config.rl.update(row_length=4608, rows_per_micro=8, remat='full')
    config.optimizer.update(learning_rate=1e-6, warmup_steps=10, weight_decay=0.01)
    config.evaluation.update(questions=500, every=50, documents=5)
    config.run.checkpoint_every = 10
    return config


# What the published system does and the `fixed` form does not, by its numbers in docs/differences.md
PAPER = {
    'simulator': {'questions': 'compacted'},  # D1: a query carries another trajectory's question and answer
    'rl': {
        'algorithm': 'reinforce',  # D13: without a baseline
        'kl': -0.001,  # D2: the divergence from the initial policy is rewarded
        'aggregate': 'micro',  # D12: means within micro-batches of 64 trajectories, whatever their lengths
    },
    'optimizer': {'warmup_from_zero': True},  # D13: the first update has rate 0
    'critic': {'over_observations': True},  # D14: PPO's advantages and values on documents too
    'rollout': {'top_p': 0.95},  # D10: truncated sampling, log-probs of the whole softmax
    'reward': {'missing': 'published'},  # D4: no answer is scored as the prompt's example
    'evaluation': {'temperature': 1.0, 'whole_batches_of': 64},  # D5: sampled; D6: the last batch is dropped
}


def paper(config: ConfigDict) -> ConfigDict:
    """An experiment in its `paper` form, with the published lengths, mini-batches, warm-up and test set."""
    for section, values in PAPER.items():
        config[section].update(values)
    config.rollout.slots = config.rollout.questions * config.rollout.group  # D1 is about whole turns of a batch
    config.rl.minibatch = 256  # D12: two updates a step, of 160 each; the published ones are of 256 and 64
    config.optimizer.warmup_steps = 192  # D13: of 203
    config.rollout.update(max_turns=2, observation_tokens=500)
    config.rollout.prompt_format = 'chat'  # of every tokenizer with a template, Qwen2.5's base; else the text alone
    config.evaluation.questions = 3125  # all of the test set, 48 batches of 64 and 53 questions
    config.run.keep_every = 50
    return config


def ppo(config: ConfigDict) -> ConfigDict:
    """An experiment with PPO as published: the divergence is taken off the reward, and the warm-ups are short."""
    config.rl.update(algorithm='ppo', kl=0.001, kl_estimator='k1')  # D2 is not of PPO
    config.optimizer.warmup_steps, config.critic.warmup_steps = 57, 3  # of 203
    return config


def search_r1(config: ConfigDict) -> ConfigDict:
    """An experiment as the paper's Search-R1: the same training with the real engine, config.engine, and no noise."""
    config.simulator.kind = 'engine'
    return config


def r1(config: ConfigDict) -> ConfigDict:
    """An experiment as the paper's R1: the same training without search, one action having the tokens of all."""
    config.simulator.kind = 'none'
    config.rollout.turn_tokens *= config.rollout.max_turns + 1
    config.rollout.update(prompt='reason', max_turns=0)
    return config


FORMS = {'paper': paper, 'ppo': ppo, 'searchr1': search_r1, 'r1': r1}  # in the order in which they are applied
