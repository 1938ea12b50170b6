"""The field's question sets by name: the seven that policies are evaluated on, and the mix they are trained on.

All are on the hub in one format (`RUC-NLPIR/FlashRAG_datasets`). The choice of the test split follows custom, since the
answers of the real test sets of HotpotQA, 2WikiMultihopQA and MuSiQue are not public.
"""

from typing import NamedTuple

_HUB = 'hub:RUC-NLPIR/FlashRAG_datasets'


class Named(NamedTuple):
    """Where a set is: a source for sources.load_questions, and the set's names for the splits 'train' and 'test'."""

    source: str
    splits: dict[str, str]


_OPEN = {'train': 'train', 'test': 'test'}
_CLOSED = {'train': 'train', 'test': 'dev'}

DATASETS = {
    'nq': Named(f'{_HUB}:nq', _OPEN),
    'triviaqa': Named(f'{_HUB}:triviaqa', _OPEN),
    'popqa': Named(f'{_HUB}:popqa', {'test': 'test'}),
    'hotpotqa': Named(f'{_HUB}:hotpotqa', _CLOSED),
    '2wikimultihopqa': Named(f'{_HUB}:2wikimultihopqa', _CLOSED),
    'musique': Named(f'{_HUB}:musique', _CLOSED),
    'bamboogle': Named(f'{_HUB}:bamboogle', {'test': 'test'}),
    # NQ and HotpotQA together, as Search-R1 and ZeroSearch train on
    'nq_hotpotqa': Named('hub:PeterJinGo/nq_hotpotqa_train', _OPEN),
}

SEVEN = ('nq', 'triviaqa', 'popqa', 'hotpotqa', '2wikimultihopqa', 'musique', 'bamboogle')


def locate(name: str, split: str) -> tuple[str, str]:
    """The source of a named set, and the set's own name for the split.

    Raises:
      ValueError: the set has no such split.
    """
    found = DATASETS[name]
    if split not in found.splits:
        raise ValueError(f'{name} has no split {split!r}; it has {", ".join(found.splits)}')
    return found.source, found.splits[split]
