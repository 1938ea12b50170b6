"""A run is used while it goes on, after it was stopped and at a step: its weights come from its checkpoints."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import time

import jax
import numpy as np
import pytest

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.policy import PolicyConfig, export_weights, make_trainable
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.run import trained
from zerosearch_jax.run.checkpoint import Checkpoints
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.tools import export
from zerosearch_jax.weights import trees

MESH = sharding.make_mesh()
ROLLOUT = {'prompt': 'reason', 'max_turns': 1, 'turn_tokens': 40, 'observation_tokens': 50}
CONFIG = {'policy': {'model': 'tiny'}, 'rollout': ROLLOUT, 'rl': {'steps': 5}, 'simulator': {'documents': 2}}


def weights(step, rank=2):
    """Trained weights, an adapter or (rank 0) a whole model, with the step in them."""
    made = make_trainable(pretrained.load_model('tiny', MESH), PolicyConfig(lora_rank=rank), MESH, 0).params
    return jax.tree.map(lambda w: w * 0 + step, made)


def begin(directory, steps, rank=2):
    directory.mkdir(exist_ok=True)
    (directory / 'config.json').write_text(json.dumps(CONFIG))
    with contextlib.closing(Checkpoints(directory / 'checkpoints')) as checkpoints:
        for step in steps:
            checkpoints.save(step, {'policy': {'params': weights(step, rank)}}, {'step': step})
    return directory


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    return begin(tmp_path_factory.mktemp('runs') / 'x', (2, 3))


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / 'x')


def step_in(found):
    return float(np.asarray(trees.load_tree(found.reference)[0]['layers']['q_lora_a']).ravel()[0])


@pytest.mark.parametrize(('step', 'expected'), [(None, 3), (2, 2), (3, 3)])
def test_a_stopped_run_is_used_from_its_newest_checkpoint_or_at_step_n(run, step, expected):
    found = trained.find(str(run), step)
    assert step_in(found) == found.step == expected
    assert (found.is_model, found.base, found.directory, found.run) == (False, 'tiny', run, CONFIG)
    assert found.reference == str(run / 'weights' / f'step_{expected:06d}' / 'adapter.safetensors')
    assert found.state == f'step {expected} of 5'
    again = trained.find(found.reference)  # as a reference of its own
    assert (again.base, again.run) == ('tiny', CONFIG)


def test_checkpoints_and_last_good_are_references_too(run):
    shutil.copytree(run / 'checkpoints' / '2', run / 'last_good' / '2')
    for reference in ('checkpoints/2', 'last_good', 'last_good/2'):
        found = trained.find(str(run / reference))
        assert (step_in(found), found.step, found.directory) == (2, 2, run)


def test_the_end_of_a_run_is_what_it_exported_unless_it_went_on(run):
    model = pretrained.load_model('tiny', MESH)
    export_weights(weights(9), model, True, run, json.dumps(CONFIG))
    found = trained.find(str(run))
    assert (step_in(found), found.step, found.state, found.directory) == (9, None, '', run)
    (run / trained.EXPORTED_STEP).write_text('{"step": 3}')
    assert step_in(trained.find(str(run))) == 9
    (run / trained.EXPORTED_STEP).write_text('{"step": 2}')
    assert step_in(trained.find(str(run))) == 3
    assert step_in(trained.find(str(run), 2)) == 2


def test_a_run_that_exported_before_this_was_noted_and_goes_on_is_newer_than_its_export(run):
    trained.note_earlier_export(run, 2)  # nothing is exported yet
    assert not (run / trained.EXPORTED_STEP).exists()
    export_weights(weights(9), pretrained.load_model('tiny', MESH), True, run, json.dumps(CONFIG))
    trained.note_earlier_export(run, 2)
    assert step_in(trained.find(str(run))) == 3
    trained.note_export(run, 3)
    trained.note_earlier_export(run, 2)
    assert step_in(trained.find(str(run))) == 9


def test_an_exported_adapter_keeps_its_run_when_that_may_go_on_for_longer(run):
    longer = CONFIG | {'rl': {'steps': 50}}
    export_weights(weights(9), pretrained.load_model('tiny', MESH), True, run, json.dumps(CONFIG))
    (run / 'config.json').write_text(json.dumps(longer))
    assert trained.find(str(run)).directory == run
    (run / 'config.json').write_text(json.dumps(CONFIG | {'seed': 1}))
    assert trained.find(str(run)).directory is None


def test_a_checkpoint_made_again_is_read_again(run):
    assert step_in(trained.find(str(run), 3)) == 3
    shutil.rmtree(run / 'checkpoints' / '3')
    shutil.copytree(run / 'checkpoints' / '2', run / 'checkpoints' / '3')
    os.utime(run / 'checkpoints' / '3', (2e9, 2e9))
    assert step_in(trained.find(str(run), 3)) == 2


def test_of_several_readers_of_a_live_run_one_writes_and_all_get_the_file(run, monkeypatch):
    written = []

    def slow(*arguments):
        written.append(arguments)
        time.sleep(0.2)
        return export_weights(*arguments)

    monkeypatch.setattr(trained, 'export_weights', slow)
    with concurrent.futures.ThreadPoolExecutor() as readers:
        found = {each.reference for each in readers.map(trained.find, [str(run)] * 4)}
    assert len(written) == 1 and found == {str(run / 'weights' / 'step_000003' / 'adapter.safetensors')}


def test_weights_that_are_not_whole_are_written_again(run):
    (run / 'weights' / 'step_000003').mkdir(parents=True)
    assert step_in(trained.find(str(run))) == 3


def test_weights_of_a_run_that_is_not_ours_are_read(run, monkeypatch):
    found = trained.find(str(run))
    (run / 'weights' / '.lock').unlink()
    (run / 'weights' / '.lock').mkdir()  # cannot be opened
    assert trained.find(str(run)) == found


def test_the_first_process_looks_for_all(run, monkeypatch):
    def look():
        return trained.find(str(run)), trained.resolve(PolicyConfig('other', str(run)))

    sent = []
    monkeypatch.setattr(
        trained, 'on_first_process', lambda call: sent.append(json.dumps(call())) or json.loads(sent[-1])
    )
    first = look()
    shutil.rmtree(run)  # the others may find other files, or none
    monkeypatch.setattr(trained, 'on_first_process', lambda _: json.loads(sent.pop(0)))
    assert look() == first


@dataclasses.dataclass(frozen=True)
class Sections:
    policy: PolicyConfig
    simulator: SimulatorConfig


@pytest.mark.parametrize('field', ['model', 'adapter'])
def test_what_is_begun_from_a_live_run_keeps_its_files_when_that_goes_on(run, tmp_path, field):
    given = PolicyConfig(**{'model': 'tiny', field: str(run)})
    cfg, workdir = Sections(given, SimulatorConfig(model='tiny', adapter=str(run))), tmp_path / 'new'
    text = json.dumps(dataclasses.asdict(cfg))
    resolved = trained.with_files(cfg, text, workdir, ('policy', 'simulator'))
    begun = PolicyConfig('tiny', str(run / 'weights' / 'step_000003' / 'adapter.safetensors'))
    assert resolved[0].policy == begun and resolved[0].simulator.adapter == begun.adapter
    assert json.loads(resolved[1]) == json.loads(json.dumps(dataclasses.asdict(resolved[0])))
    workdir.mkdir()
    (workdir / 'config.json').write_text(resolved[1])
    export_weights(weights(9), pretrained.load_model('tiny', MESH), True, run, json.dumps(CONFIG))
    assert trained.with_files(cfg, text, workdir, ('policy', 'simulator')) == resolved
    fresh, _ = trained.with_files(cfg, text, tmp_path / 'newer', ('policy',))
    assert (fresh.policy.adapter, fresh.simulator) == (str(run / 'adapter.safetensors'), cfg.simulator)


def test_a_step_that_is_not_there_is_told_with_those_that_are(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'checkpoints has no checkpoint of step 7: it has 2, 3'):
        trained.find(str(run), 7)
    (tmp_path / 'new' / 'checkpoints').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='has no checkpoint: it has none yet'):
        trained.find(str(tmp_path / 'new'))
    with pytest.raises(ValueError, match='--step=2: smollm2_policy is no directory of a run'):
        trained.find('smollm2_policy', 2)


def test_a_damaged_checkpoint_of_a_run_is_told(run):
    (run / 'checkpoints' / '3' / 'state' / 'manifest.ocdbt').unlink()
    with pytest.raises(ValueError, match=r'checkpoint 3 is damaged \(.*\); delete it to continue from 2'):
        trained.find(str(run))
    assert step_in(trained.find(str(run), 2)) == 2


def test_a_run_that_trains_all_weights_is_a_model(tmp_path):
    found = trained.find(str(begin(tmp_path / 'whole', (1,), rank=0)))
    assert found.is_model and found.reference == str(tmp_path / 'whole' / 'weights' / 'step_000001' / 'model')
    model = pretrained.load_model(found.reference, MESH)
    assert all((w == 1).all() for w in jax.tree.leaves(model.params))
    assert trained.find(found.reference).run == CONFIG


def test_policy_model_or_policy_adapter_may_be_a_runs_directory(run, tmp_path):
    file = str(run / 'weights' / 'step_000003' / 'adapter.safetensors')
    assert trained.resolve(PolicyConfig('other', str(run))) == PolicyConfig('other', file)
    assert trained.resolve(PolicyConfig(str(run))) == PolicyConfig('tiny', file)
    assert trained.resolve(SimulatorConfig(model='other', adapter=str(run))).adapter == file
    for plain in (PolicyConfig(), PolicyConfig('tiny', 'smollm2_policy')):
        assert trained.resolve(plain) == plain
    whole = begin(tmp_path / 'whole', (1,), rank=0)
    assert trained.resolve(PolicyConfig(str(whole))).model == str(whole / 'weights' / 'step_000001' / 'model')
    with pytest.raises(ValueError, match=r'holds a whole model; name it in config\.policy\.model'):
        trained.resolve(PolicyConfig('other', str(whole)))


def test_export_of_a_run_that_is_not_finished_says_so(run, tmp_path):
    (run / 'metrics.jsonl').write_text(''.join(f'{{"step": {i}, "reward/mean": 0.{i}}}\n' for i in (1, 2, 3)))
    export.export(str(run), tmp_path / 'out', step=2)
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'The training is not finished: these weights are of step 2 of 5.' in card
    assert (tmp_path / 'out' / 'adapter_model.safetensors').is_file()


def test_protocol_and_budgets_are_those_of_the_run_unless_a_flag_says_otherwise(run):
    found = trained.find(str(run))
    size = found.rollout_config(RolloutConfig(max_turns=3, turn_tokens=80), given=('rollout.turn_tokens',))
    assert (size.prompt, size.max_turns, size.turn_tokens, size.observation_tokens) == ('reason', 1, 80, 50)
    assert found.documents(5) == 2 and found.documents(5, ('evaluation.documents',)) == 5
    assert trained.asked_line(size, 2) == (
        "prompt 'reason' (chat), 1 searches of 2 documents at most, 80 tokens a turn, 50 an observation, 512 in all"
    )


def test_a_directory_does_not_take_the_place_of_a_built_in_model(run, tmp_path, monkeypatch):
    run.rename(tmp_path / 'tiny')
    monkeypatch.chdir(tmp_path)
    assert trained.resolve(PolicyConfig(model='tiny')) == PolicyConfig(model='tiny')


def test_a_note_of_an_export_that_says_nothing_is_named(run):
    export_weights(weights(3), pretrained.load_model('tiny', MESH), True, run, '{}')
    (run / trained.EXPORTED_STEP).write_text('{}')
    with pytest.raises(ValueError, match=r'exported\.json does not say after which step'):
        trained.find(str(run))
