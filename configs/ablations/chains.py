r"""Which reward, credit and simulator make SmolLM2-135M follow chains of two searches? Three seeds each.

  python -m launch.sft --config configs/chains_sft.py
  python -m launch.sweep --config configs/ablations/chains.py --results docs/runs/chains

All arms start from one policy that follows a chain or guesses before any hop of it. `grpo` and `turn_hop` train on
BM25, `told_final` and `told_hop` on the simulator, whose requests tell the question's answer or that of the hop which
the query asks for, with noise that rises from 0 to 0.5; `told_hop_clear` has no noise. All are judged by BM25 on 256
held-out questions.

Stated before the runs: some 115 of them need a chain of two. If two arms answer a third of these differently, a
difference of them has a standard error of 5.4 points for one seed and, if seeds are independent, of 3.1 for three: one
of 9 points is then found four times in five at the 5 % level; if all seeds answer alike, one of 15.

Measured: docs/second_search.md.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.common import no_preset

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


def get_config(preset=''):
    no_preset(preset)
    base = quickstart.get_config()
    base.policy.update(adapter='runs/chains_sft', dtype='bfloat16')
    base.simulator.dtype = 'bfloat16'
    base.data.folds = (4, 5, 6, 7, 8, 9)
    base.rollout.response_tokens = 512
    base.rl.steps = 12
    base.evaluation.update(questions=256, before=False)
    base.run.tensorboard = False
    study = {'base': base, 'baseline': 'grpo', 'variants': VARIANTS, 'pairs': PAIRS}
    return ConfigDict(study | {'seeds': (0, 1, 2)})
