r"""Which reward, credit and simulator make SmolLM2-135M follow chains of two searches? Three seeds each.

  python -m launch.sft --config configs/chains_sft.py
  python -m launch.sweep --config configs/ablations/chains.py --results docs/runs/chains

All arms start from one policy that follows a chain or guesses before any hop of it. `grpo` and `turn_hop` train on
BM25, `told_final` and `told_hop` on the simulator, whose requests tell the question's answer or that of the hop which
the query asks for, with noise that rises from 0 to 0.5; `told_hop_clear` has no noise. All are judged by BM25 on 256
held-out questions.

`long` trains for 24 steps instead of 12, with four arms from the same start: none, `grpo`; `turn_hop_price`, in which a
search that finds a hop's answer anew earns 0.2, each search costs 0.05, and turns have their own advantages; and
`told_turn_hop_price`, the same on the simulator, whose requests tell the answer of the hop.

  python -m launch.sweep --config configs/ablations/chains.py:long --results docs/runs/chains_long

Stated before the runs: some 115 of them need a chain of two. If two arms answer a third of these differently, a
difference of them has a standard error of 5.4 points for one seed and, if seeds are independent, of 3.1 for three: one
of 9 points is then found four times in five at the 5 % level; if all seeds answer alike, one of 15.

Measured: docs/second_search.md.
"""

from ml_collections import ConfigDict

from configs import quickstart

ENGINE = {'simulator': {'kind': 'engine'}}
VARIANTS = {
    'warm_start': ENGINE | {'seed': 0, 'rl': {'steps': 0}, 'evaluation': {'before': True}},
    'grpo': ENGINE,
    'turn_hop': ENGINE | {'rl': {'credit': 'turn'}, 'reward': {'hop': 0.2}},
    'told_final': {'simulator': {'tell': 'final'}},
    'told_hop': {'simulator': {'tell': 'hop'}},
    'told_hop_clear': {'simulator': {'tell': 'hop'}, 'curriculum': {'end': 0.0}},
}
PAIRS = (
    *(('warm_start', name) for name in VARIANTS if name != 'warm_start'),
    *(('grpo', name) for name in ('turn_hop', 'told_final', 'told_hop', 'told_hop_clear')),
    ('told_final', 'told_hop'),
    ('told_hop', 'told_hop_clear'),
)
TURNS = {'rl': {'credit': 'turn'}, 'reward': {'hop': 0.2, 'search': 0.05}}
LONG = {
    'warm_start': VARIANTS['warm_start'],
    'grpo': ENGINE,
    'turn_hop_price': ENGINE | TURNS,
    'told_turn_hop_price': {'simulator': {'tell': 'hop'}} | TURNS,
}
LONG_PAIRS = (
    *(('warm_start', name) for name in LONG if name != 'warm_start'),
    *(('grpo', name) for name in ('turn_hop_price', 'told_turn_hop_price')),
    ('turn_hop_price', 'told_turn_hop_price'),
)
STUDIES = {'': (12, VARIANTS, PAIRS), 'long': (24, LONG, LONG_PAIRS)}  # steps, arms, differences


def get_config(preset=''):
    steps, variants, pairs = STUDIES[preset]
    base = quickstart.get_config()
    base.policy.update(adapter='runs/chains_sft', dtype='bfloat16')
    base.simulator.dtype = 'bfloat16'
    base.data.folds = (4, 5, 6, 7, 8, 9)
    base.rollout.response_tokens = 512
    base.rl.steps = steps
    base.evaluation.update(questions=256, before=False)
    base.run.tensorboard = False
    study = {'base': base, 'baseline': 'grpo', 'variants': variants, 'pairs': pairs}
    return ConfigDict(study | {'seeds': (0, 1, 2)})
