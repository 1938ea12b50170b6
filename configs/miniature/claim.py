r"""Does training on simulated search carry over to a real engine? The published claim, small, with three seeds an arm.

  python -m launch.sweep --config configs/miniature/claim.py --results docs/runs/claim
  python -m launch.sweep --config configs/miniature/claim.py:further
  python -m launch.sweep --config configs/miniature/claim.py:simulated_search --config.seeds="(0,)" \
      --config.base.rl.steps=6 --config.base.evaluation.questions=50

All arms have the same warm start (configs/miniature/warm_start.py), questions, updates and trajectories; all are asked
the same held-out questions greedily, with BM25 over the built-in corpus (without search for the arm without search).
`further`: the simulator as it comes, constant noise of the curriculum's mean, and oracle documents. With the name of
an arm as the preset, only that arm is run. Results: docs/claim.md.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.miniature.warm_start import FOLDS

NO_SEARCH = {
    'simulator': {'kind': 'none'},
    'rollout': {'prompt': 'reason', 'max_turns': 0, 'turn_tokens': 320},
    'alarms': {'searches': 0.0},
}
CORE = {
    'untrained': {'seed': 0, 'rl': {'steps': 0}, 'evaluation': {'before': True}},
    'no_search': NO_SEARCH,
    'real_search': {'simulator': {'kind': 'engine'}},
    'simulated_search': {},
}
FURTHER = {
    'simulated_search': {},
    'prompted_simulator': {'simulator': {'adapter': '', 'template': 'prompted', 'prompt_tokens': 448}},
    'constant_noise': {'curriculum': {'kind': 'matched'}},
    'oracle': {'simulator': {'kind': 'oracle'}},
}
PAIRS = (
    ('untrained', 'simulated_search'),
    ('no_search', 'simulated_search'),
    ('real_search', 'simulated_search'),
    ('untrained', 'real_search'),
    ('untrained', 'no_search'),
)


def get_config(preset=''):
    studies = {'': (CORE, PAIRS), 'further': (FURTHER, ())}
    studies |= {name: ({name: arm}, ()) for name, arm in (FURTHER | CORE).items()}
    variants, pairs = studies[preset]
    base = quickstart.get_config()
    base.data.folds = FOLDS['reinforcement']
    base.simulator.update(adapter='miniature_simulator', template='tuned', tell='final')
    base.simulator.update(blind_noise=False, words=25, slots=32)
    base.rollout.slots = 32
    base.rl.update(steps=12, row_length=576, kl=0.001)
    base.optimizer.update(learning_rate=5e-5, warmup_steps=2)
    base.evaluation.update(questions=200, before=False)
    base.run.update(trajectories_every=10, tensorboard=False)
    baseline = next(iter(variants))
    return ConfigDict({'base': base, 'baseline': baseline, 'variants': variants, 'pairs': pairs, 'seeds': (0, 1, 2)})
