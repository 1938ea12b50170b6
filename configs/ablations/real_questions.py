r"""What a policy earns on real questions, HotpotQA and NQ, with simulated and with real search. One seed.

  python -m launch.train --config configs/quickstart.py
  (cd $ZEROSEARCH_DATA/questions; zcat hotpotqa_dev.jsonl.gz nq_test.jsonl.gz) | grep '"fold": [78]' |
    grep '"in_corpus": true' > runs/hotpotqa_nq.jsonl
  python -m launch.sweep --config configs/ablations/real_questions.py

The policy is the quickstart's, which searches. The questions are of folds that the simulator was not trained on; those
that the corpus does not answer are left out, so that real search can earn what simulated search can.

Measured: mean rewards 0.044 with real and 0.068 with simulated search (docs/simulator.md).
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.common import no_preset

VARIANTS = {'real_search': quickstart.PRESETS['search_r1'], 'simulated_search': {}}


def get_config(preset=''):
    no_preset(preset)
    base = quickstart.get_config()
    base.policy.adapter = 'runs/quickstart'
    base.data.update(train='runs/hotpotqa_nq.jsonl', test='questions/eval_mini.jsonl', folds=())
    base.data.corpus = 'corpus/corpus.jsonl.gz'
    base.rollout.update(questions=8, group=4, prompt_tokens=224, max_turns=2, observation_tokens=256)
    base.rollout.response_tokens = 640
    base.evaluation.before = False
    return ConfigDict({'base': base, 'baseline': 'real_search', 'variants': VARIANTS, 'seeds': (0,)})
