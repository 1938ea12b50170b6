r"""The tables of ZeroSearch (arXiv 2505.04588): every policy, simulator, algorithm and baseline, as one study.

Not run yet. The report shows the published scores (configs/reproduce/figures.py) beside the measured ones.

  python -m launch.sweep --config configs/reproduce/tables.py:paper --dry-run --hardware=a100-80gb:8
  python -m launch.sweep --config configs/reproduce/tables.py:paper --part=0/4
  python -m launch.sweep --config configs/reproduce/tables.py --part=0/4
  python -m launch.sweep --config configs/reproduce/tables.py:paper_google_main

Without `paper` the study is in the `fixed` form (docs/differences.md); the published scores are of the paper's form.
With `google` SerpAPI searches, as in the paper, and costs money; otherwise a retriever of Search-R1's protocol at
config.base.engine.url searches. One table alone: `main` (3), `simulators` (4), `algorithms` (5), `ablations` (6 and 7).
`grid` trains every base policy with every fine-tuned simulator; the paper does not.

The prompted methods ask the instructed models all 3,125 questions, with greedy decoding; trained policies are evaluated
at the end of training. The published wording of prompts is not included (docs/method.md, "Custom prompts"); give it by
--config.base.simulator.template=FILE.json and --config.base.rollout.prompt=FILE.json. One seed, as in the paper.
"""

from ml_collections import ConfigDict

from configs import llama3_2_3b, qwen2_5_3b, qwen2_5_7b
from configs.reproduce import figures
from configs.studies import changes

MODELS = {'qwen_3b': qwen2_5_3b, 'qwen_7b': qwen2_5_7b, 'llama_3b': llama3_2_3b}
METHODS = ('direct', 'cot', 'rag', 'agent', 'search_o1')  # methods of evaluate/methods.py that need no training

# {end of the arm's name: (word of the policy's preset, other changes of its experiment)}
OWN = {'': ('', {})}
TRAINED = OWN | {'_searchr1': ('searchr1', {}), '_r1': ('r1', {})}
TUNED = {
    f'_tuned_{size}b': ('', {'simulator': {'model': f'Alibaba-NLP/Simulation_LLM_google_{size}B_V2'}})
    for size in (3, 7)
}
NOT_TUNED = {'template': 'prompted', 'blind_noise': True}
PROMPTED = {
    f'_prompted_{size}b': ('', {'simulator': {'model': f'Qwen/Qwen2.5-{size}B-Instruct'} | NOT_TUNED})
    for size in (3, 7, 14)
}
UNTRAINED = {'_untrained': ('', {'rl': {'steps': 0}, 'evaluation': {'before': True}})}
ALGORITHMS = {'_grpo': ('', {'rl': {'algorithm': 'grpo'}}), '_ppo': ('ppo', {})}
RANDOM = {'_random': ('', {'curriculum': {'kind': 'constant', 'start': 0.5, 'end': 0.5}})}
UNMASKED = {'_unmasked': ('', {'rl': {'observations': 'policy'}})}
ARMS = TRAINED | TUNED | PROMPTED | UNTRAINED | ALGORITHMS | RANDOM | UNMASKED
MAIN = {f'{model}_{kind}': TRAINED for model in MODELS for kind in ('base', 'instruct')}
TABLES = {
    'main': MAIN | {model: dict.fromkeys(f'_{method}' for method in METHODS) for model in MODELS},
    'simulators': {'qwen_3b_base': OWN | {'_searchr1': TRAINED['_searchr1']} | TUNED | PROMPTED | UNTRAINED},
    'algorithms': {'qwen_3b_base': OWN | ALGORITHMS},
    'ablations': {'qwen_3b_base': OWN | RANDOM, 'llama_3b_base': OWN | RANDOM | UNMASKED},
    'grid': {f'{model}_base': OWN | TUNED for model in MODELS},
}


def get_config(preset=''):
    words = list(filter(None, preset.split('_')))
    if not {*words} <= {'paper', 'google', *TABLES}:
        raise KeyError(preset)
    form = [word for word in words if word == 'paper']
    chosen = [word for word in words if word in TABLES] or [name for name in TABLES if name != 'grid']
    base, variants = _experiment('qwen_3b_base', *form), {}
    for policy, arms in (found for name in chosen for found in TABLES[name].items()):
        for end, arm in arms.items():
            made = _asked(policy, end[1:], form) if arm is None else _experiment(policy, *form, arm[0])
            own = arm[1] if arm else {}
            made.update(own)
            found = changes(base, made)  # and all that the arm sets: --config.base may change the base
            variants[policy + end] = found | {section: found.get(section, {}) | own[section] for section in own}
    if 'google' in words:
        base.engine.kind = 'serpapi'
    ends = [(policy, end) for policy in MAIN for end in ARMS if end and policy + end in variants]
    pairs = tuple((policy + end, policy) for policy, end in ends)
    known = tuple((name, figures.FIGURES[name]) for name in variants if name in figures.FIGURES)
    published = {'sets': figures.SETS, 'score': 'cover_em', 'source': figures.SOURCE, 'figures': known}
    study = {'base': base, 'baseline': 'qwen_3b_base', 'variants': variants, 'seeds': (0,)}
    return ConfigDict(study | {'pairs': pairs, 'published': published})


def _experiment(policy: str, *words: str) -> ConfigDict:
    """The experiment of a policy, evaluated once, on the whole test set, at the end."""
    model, _, kind = policy.rpartition('_')
    config = MODELS[model].get_config('_'.join(filter(None, (kind, *words))))
    config.evaluation.update(questions=3125, every=0, before=False)
    return config


def _asked(model: str, method: str, form: list[str]) -> ConfigDict:
    """The instructed model with a prompted method and no training: an arm of launch.evaluate."""
    config = _experiment(f'{model}_instruct', *form)
    config.evaluation.update(methods=method, temperature=0.0, whole_batches_of=1)
    return ConfigDict({name: config[name] for name in ('policy', 'rollout', 'evaluation')})
