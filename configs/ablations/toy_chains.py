r"""Which credit and which reward make a policy search as often as a question needs: chains of one to three hops.

python -m launch.sft --config configs/toy_chains_sft.py
python -m launch.sweep --config configs/ablations/toy_chains.py

Measured: docs/second_search.md. Five seeds each. `grpo` to `deepest` train on BM25, as all are evaluated; `oracle`
on gold passages; `told...` on gold passages of which one tells the chain's final answer when the first hop is asked
for, as if it were the answer to that, as simulators do whose request contains it. In each pair the second is compared
with the first.
"""

import functools

from ml_collections import ConfigDict

from configs import toy_hops
from configs.common import no_preset
from zerosearch_jax.data import sources
from zerosearch_jax.search.bm25 import BM25

HOP, PRICE, INFORMATION = 0.2, 0.05, 0.05
TURN, HOPS = {'rl': {'credit': 'turn'}}, {'reward': {'hop': HOP}}
ORACLE = {'simulator': {'kind': 'oracle'}}
TOLD = ORACLE | {
    'data': {'train': 'toy_chains_told', 'corpus': 'toy_chains_told'},
    'engine': {'kind': 'configs.ablations.toy_chains.search_without_answers'},  # evaluations ask as all others do
}
VARIANTS = {
    'warm_start': {'seed': 0, 'rl': {'steps': 0}, 'evaluation': {'before': True}},
    'grpo': {},
    'rloo': {'rl': {'algorithm': 'rloo'}},  # what credit by turn is where turns earn nothing
    'hop': HOPS,
    'turn_hop': TURN | HOPS,
    'turn_hop_price': TURN | {'reward': {'hop': HOP, 'search': PRICE}},
    'turn_information': TURN | {'reward': {'information': INFORMATION}},
    'chains_first': {'data': {'first_hops': 2, 'first_steps': 20}},
    'deepest': {'rl': {'deepest': 0.5}},
    'oracle': ORACLE,
    'told': TOLD,
    'told_turn_hop': TOLD | TURN | HOPS,
}
PAIRS = (
    ('warm_start', 'grpo'),
    *(('grpo', name) for name in VARIANTS if name not in ('warm_start', 'grpo') and 'told' not in name),
    *(('hop', 'turn_hop'), ('turn_hop', 'turn_hop_price'), ('oracle', 'told'), ('told', 'told_turn_hop')),
)


@functools.cache
def _engine():
    return BM25(sources.load_passages('toy_chains'))


def search_without_answers(cfg, queries, k):
    """The engine of evaluations where the corpus of training has passages that tell final answers."""
    return _engine().search(queries, k)


def get_config(preset=''):
    no_preset(preset)
    study = {'base': toy_hops.get_config(), 'baseline': 'grpo', 'variants': VARIANTS, 'pairs': PAIRS}
    return ConfigDict(study | {'seeds': tuple(range(5))})
