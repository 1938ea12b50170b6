"""Every experiment builds and parses, and the published model sizes are the published ones."""

import ast
import collections
import dataclasses
import importlib
import inspect
import math
import re

import jax
import pytest
from helpers import ROOT

from configs import common, tiny
from zerosearch_jax import settings, sharding
from zerosearch_jax.data import sources
from zerosearch_jax.data.rows import Question
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.models.config import PRESETS, from_hf, to_hf
from zerosearch_jax.study import sweep
from zerosearch_jax.tools.config_reference import PROGRAMS
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import sft, trainer

CONFIGS = ROOT / 'configs'
CLAIM = CONFIGS / 'miniature' / 'claim.py'
FILES = sorted(path for path in CONFIGS.glob('*.py') if 'def get_config' in path.read_text())
FILES.append(CONFIGS / 'miniature' / 'warm_start.py')
STUDIES = sorted(path for path in (CONFIGS / 'ablations').glob('*.py') if path.stem != '__init__')
TABLES = CONFIGS / 'reproduce' / 'tables.py'
PUBLISHED = {
    'qwen2.5-0.5b': 0.494e9,
    'qwen2.5-1.5b': 1.54e9,
    'qwen2.5-3b': 3.09e9,
    'qwen2.5-7b': 7.62e9,
    'qwen2.5-14b': 14.77e9,
    'qwen3-0.6b': 0.596e9,
    'qwen3-1.7b': 1.72e9,
    'qwen3-4b': 4.02e9,
    'qwen3-8b': 8.19e9,
    'qwen3-30b-a3b': 30.5e9,
    'gemma3-270m': 268e6,
    'gemma3-1b': 1.0e9,
    'llama3.2-1b': 1.236e9,
    'llama3.2-3b': 3.213e9,
    'smollm2-135m': 134.5e6,
    'smollm2-360m': 361.8e6,
    'smollm2-1.7b': 1.711e9,
}


def presets(path):
    """The presets that the commands of a configuration's docstring name; '' is the bare file."""
    doc = ast.get_docstring(ast.parse(path.read_text()))
    found = re.findall(rf'--config configs/{path.relative_to(CONFIGS)}(?::(\w+))?', doc)
    assert found, f'{path.name}: its docstring shows no command'
    return sorted(set(found))


def build(path, preset):
    module = importlib.import_module('.'.join(['configs', *path.relative_to(CONFIGS).with_suffix('').parts]))
    return module.get_config(preset) if preset else module.get_config()


EXPERIMENTS = [(path, preset) for path in FILES for preset in presets(path)]
NAMES = [f'{path.stem}:{preset}' for path, preset in EXPERIMENTS]


def program(path):
    """What runs a configuration: that of the first command of its docstring."""
    name = path.relative_to(CONFIGS)
    return PROGRAMS[re.search(rf'python -m launch\.(\w+) --config configs/{name}', path.read_text())[1]]


@pytest.mark.parametrize(('path', 'preset'), EXPERIMENTS, ids=NAMES)
def test_an_experiment_builds_parses_and_survives_being_written(path, preset):
    config = build(path, preset)
    parsed = program(path).parse(config)
    assert settings.to_json(dataclasses.asdict(parsed)) == settings.to_json(config)  # no section is left out


@pytest.mark.parametrize(
    ('path', 'preset'),
    [*((path, '') for path in STUDIES), (CLAIM, ''), (CLAIM, 'further'), (TABLES, ''), (TABLES, 'paper')],
    ids=lambda x: str(x)[-20:],
)
def test_a_study_builds_and_all_its_variants_parse(path, preset):
    study = sweep.parse(build(path, preset))
    made = [settings.to_json(study.config(name, 0)) for name in study.variants]
    assert len(set(made)) == len(made) > 1  # no two variants are the same experiment
    assert f'python -m launch.sweep --config configs/{path.relative_to(CONFIGS)}' in path.read_text()
    assert all(re.fullmatch(r'\w+', name) for name in study.variants)


@pytest.mark.parametrize(('path', 'preset'), EXPERIMENTS, ids=NAMES)
def test_an_experiment_changes_what_can_be_overlooked_at_a_glance(path, preset):
    defaults, built = common.sections(program(path).Config), build(path, preset)
    changed = [
        name
        for section, values in built.items()
        if hasattr(values, 'keys')
        for name in values
        if values[name] != defaults[section][name]
    ]
    assert len(changed) <= 55


@pytest.mark.parametrize(('path', 'preset'), EXPERIMENTS, ids=NAMES)
def test_no_experiment_looks_foreign_questions_up_in_the_built_in_corpus(path, preset, monkeypatch):
    parsed, made = program(path).parse(build(path, preset)), [Question(str(i), 'q', ('a',)) for i in range(999)]
    monkeypatch.setattr(sources, 'load_questions', lambda *_: made)
    for loader in (trainer, evaluation):
        if isinstance(parsed, inspect.signature(loader.load_questions).parameters['cfg'].annotation):
            assert loader.load_questions(parsed)


def test_the_presets_of_a_file_differ():
    for path in FILES:
        built = [settings.to_json(build(path, preset)) for preset in presets(path) if preset]
        assert len(set(built)) == len(built), path


def test_no_two_commands_share_a_run_directory():
    """Names as launch.common.default_workdir makes them."""
    studies = [(path, preset) for path in (*STUDIES, CLAIM, TABLES) for preset in presets(path)]
    names = ['_'.join(filter(None, [path.stem, preset])) for path, preset in (*EXPERIMENTS, *studies)]
    assert [name for name, count in collections.Counter(names).items() if count > 1] == []


def test_a_docstring_claims_no_result_without_saying_where_it_was_measured():
    for path in FILES:
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert 'launch.' in doc
        if 'Expected:' in doc:
            assert re.search(r'Expected: (not run|.*(CPU|GPU|TPU|H200))', doc, re.DOTALL), path


def test_every_configuration_has_its_own_sections():
    first, second = build(FILES[0], ''), build(FILES[0], '')
    first.seed = 99
    next(value for value in first.values() if hasattr(value, 'keys')).update({})
    assert second.seed != 99


def size(layout):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(layout, is_leaf=sharding.is_param))


def test_all_published_presets_are_checked():
    assert PUBLISHED.keys() == PRESETS.keys() - {'tiny'}


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_published_model_has_its_published_size_and_shards(name):
    cfg = PRESETS[name]
    layout = transformer.layout(cfg)
    assert size(layout) == pytest.approx(PUBLISHED[name], rel=0.01)
    assert from_hf(to_hf(cfg)) == cfg
    data, fsdp, tensor = (1, 4, 2)
    if cfg.num_heads % 2 or cfg.num_kv_heads % 2:  # SmolLM2-135M and -360M: three and five key-value heads
        tensor = 1
    mesh = sharding.make_mesh((data, fsdp, tensor))
    tree = sharding.abstract(layout, mesh)
    tree = lora.combine(tree, sharding.abstract(lora.layout(cfg, 8), mesh))
    for leaf in jax.tree.leaves(tree):
        leaf.sharding.shard_shape(leaf.shape)  # raises where the mesh does not divide it
    big = [leaf for leaf in jax.tree.leaves(tree) if leaf.size > 10**6 and leaf.shape[-1] > 8 < leaf.shape[-2]]
    assert all(not leaf.sharding.is_fully_replicated for leaf in big)
    tokens = jax.ShapeDtypeStruct((4, 16), 'int32')
    with jax.set_mesh(mesh):
        hidden = jax.eval_shape(lambda p, t: transformer.hidden(p, cfg, t, t, t, t), tree, tokens)
        logits = jax.eval_shape(transformer.logits, tree, hidden)
    assert hidden.shape == (4, 16, cfg.hidden_size)
    assert logits.shape == (4, 16, cfg.vocab_size)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('run.checkpoint_every', 0, 'checkpoint_every must be positive, got 0'),
        ('run.trajectories_every', 0, 'trajectories_every must be positive'),
        ('rollout.decode_steps', 0, 'decode_steps must be positive'),
        ('rollout.slots', -1, 'slots must not be negative'),
        ('simulator.slots', -1, 'slots must not be negative'),
        ('rollout.temperature', 0.0, 'temperature must be positive'),
        ('rollout.group', 1, "'grpo' compares the samples of a question"),
        ('rollout.prompt', 'direct', "'direct' is for evaluations"),
        ('rollout.prompt_tokens', 0, 'prompt_tokens must be positive'),
        ('rollout.top_p', 1.5, r'top_p must be in \(0, 1\]'),
        ('simulator.attempts', 0, 'attempts must be positive'),
        ('evaluation.documents', 0, 'documents must be positive'),
        ('optimizer.b1', 1.0, 'b1 and b2 must be below 1'),
        ('optimizer.learning_rate', float('nan'), 'learning_rate must be finite'),
        ('reward.format', float('inf'), 'format must be finite'),
        ('policy.lora_rank', -1, 'lora_rank must not be negative'),
        ('data.folds', (10,), 'folds are numbered from 0 to 9, got 10'),
    ],
)
def test_what_would_train_nothing_is_refused(field, value, message):
    config = tiny.get_config()
    section, name = field.split('.')
    config[section][name] = value
    with pytest.raises(ValueError, match=message):
        train_config.parse(config)


@pytest.mark.parametrize('prompt', ['search', 'budget', 'reason'])
def test_a_prompt_that_asks_for_searches_needs_searches(prompt):
    config = tiny.get_config()
    config.rollout.update(max_turns=0, prompt=prompt)
    config.simulator.kind = 'none'
    if prompt == 'reason':
        assert train_config.parse(config).rollout.prompt == 'reason'
    else:
        with pytest.raises(ValueError, match=r"asks for searches.*prompt='reason'"):
            train_config.parse(config)


@pytest.mark.parametrize('name', ['row_length', 'rows_per_micro', 'chunk'])
def test_fine_tuning_refuses_a_size_of_zero(name):
    config = common.sections(sft.Config)
    config.sft[name] = 0
    with pytest.raises(ValueError, match=f'{name} must be positive'):
        sft.parse(config)


def test_an_evaluation_on_simulated_search_needs_a_simulator():
    config = common.sections(evaluation.Config)
    config.evaluation.simulated, config.simulator.kind = True, 'none'
    with pytest.raises(ValueError, match=r"config\.simulator\.kind is 'none'"):
        evaluation.parse(config)


@pytest.mark.parametrize(('name', 'value'), [('drop_zero_variance', True), ('dynamic_sampling', 1)])
def test_groups_of_one_cannot_be_chosen_by_their_variance(name, value):
    config = tiny.get_config()
    config.rl.update({'algorithm': 'reinforce_baseline', name: value})
    train_config.parse(config)
    config.rollout.group = 1
    with pytest.raises(ValueError, match='group must be at least 2'):
        train_config.parse(config)
