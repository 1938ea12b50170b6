"""What a run does when searches fail: it stops where nearly all do, else counts them, and asks again later."""

import pytest
from scripted import EOS, FakeEngine

from configs import tiny
from zerosearch_jax import settings
from zerosearch_jax.run import jsonl
from zerosearch_jax.search import remote
from zerosearch_jax.search.remote import RemoteSearch, RequestFailed
from zerosearch_jax.search.search import Document, OutsideFailed
from zerosearch_jax.text.tokenizer import byte_tokenizer
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl, trainer

ASKED = []
FAILS = set()  # queries that the engine fails; {'all'}: whatever is asked


def engine(queries, k):
    """The search engine of these tests: it takes one query a request."""
    ASKED.extend(queries)
    if FAILS & {'all', *queries}:
        raise RequestFailed('status_503')
    return [[Document('', f'about {query}')] for query in queries]


class Policy(FakeEngine):
    """Searches for the question's id, unless that ends in 'x', then answers 'b', with a sample in two wrong."""

    slots = capacity = 1000

    def __init__(self):
        def script(handle, number, _):
            question, sample = handle
            if number == 0 and not question.endswith('x'):
                text = f'<search> {question} </search>'
            else:
                text = '<answer> b </answer>' if sample % 2 == 0 else '<answer> c </answer>'
            return [*byte_tokenizer().encode(text), EOS]

        super().__init__(script)

    decoded_tokens = 0

    def load(self, *_, **__):
        self.context.clear()
        self.budgets.clear()
        self.closed.clear()

    def unload(self):
        pass


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A configuration of four questions a step, in random order, and eight held-out ones."""
    ASKED.clear()
    FAILS.clear()
    monkeypatch.setattr(trainer.Trainer, '_open_engines', lambda self: [Policy()])
    open_engine = lambda cfg, passages, log: RemoteSearch(engine, 1, 'ours', cfg, log)  # noqa: E731
    monkeypatch.setattr(trainer, 'open_search_engine', open_engine)
    monkeypatch.setattr(remote, 'probe', lambda cfg: None)  # it was well when the run began
    rows = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b']} for i in range(8)]
    rows[7]['id'] = 'q7x'
    jsonl.write_jsonl(tmp_path / 'q.jsonl', rows)
    jsonl.write_jsonl(tmp_path / 'c.jsonl', [{'id': 'p', 'title': '', 'text': 'nothing'}])
    made = tiny.get_config()
    made.data.update(train=str(tmp_path / 'q.jsonl'), test=str(tmp_path / 'q.jsonl'), corpus=str(tmp_path / 'c.jsonl'))
    made.engine.update(kind='search_r1', retries=0)
    made.simulator.kind = 'engine'
    made.rollout.update(questions=4, group=2, turn_tokens=48)
    made.rl.update(steps=2, rows_per_micro=4)
    made.evaluation.questions = 8
    return made


def run(made, workdir):
    return rl.train(train_config.parse(made), workdir, settings.to_json(made))


def metrics(workdir):
    return {
        (row['step'], 'eval/em' in row): {k: v for k, v in row.items() if not k.startswith('speed/')}
        for row in jsonl.read_jsonl(workdir / 'metrics.jsonl')
    }


@pytest.mark.thorough
def test_a_search_service_that_dies_ends_the_run_and_the_next_start_ends_it_as_if_nothing_had_been(
    made, tmp_path, capsys
):
    made.evaluation.before = False
    whole = run(made, tmp_path / 'whole')
    FAILS.add('all')
    with pytest.raises(
        OutsideFailed, match=r'step 1 rollouts, episodes that search: \d of \d failed \(\d+ status_503\)'
    ):
        run(made, tmp_path / 'part')
    assert 'run the same command again to continue' in capsys.readouterr().err
    assert not (tmp_path / 'part' / 'metrics.jsonl').exists()
    FAILS.clear()
    again = run(made, tmp_path / 'part')
    assert metrics(tmp_path / 'part') == metrics(tmp_path / 'whole')
    assert {**again, 'cost': 0} == {**whole, 'cost': 0}
    for name in ('trajectories.jsonl', 'evaluation/step_000002.jsonl'):
        assert (tmp_path / 'part' / name).read_text() == (tmp_path / 'whole' / name).read_text()


@pytest.mark.thorough
def test_an_evaluation_in_which_nearly_all_searches_fail_ends_the_run_and_is_made_at_the_next_start(made, tmp_path):
    FAILS.add('all')
    with pytest.raises(OutsideFailed, match='evaluation after step 0, episodes that search: 7 of 7 failed'):
        run(made, tmp_path / 'run')
    FAILS.clear()
    assert run(made, tmp_path / 'run')['evaluations']['0']['em']['mean'] == 1


@pytest.mark.thorough
def test_failed_searches_are_in_no_score_and_on_the_headline_and_in_the_summary(made, tmp_path, capsys):
    FAILS.update(('q0', 'q1', 'q2'))
    summary = run(made, tmp_path / 'run')
    shown = capsys.readouterr().err
    assert 'INCOMPLETE: 3 questions failed' in shown and 'OF SEARCHES FAILED' in shown
    for row in metrics(tmp_path / 'run').values():
        if 'eval/em' in row:
            assert (row['eval/em'], row['eval/failed']) == (1, 3)
        else:
            assert row['reward/mean'] == row['reward/em'] == 0.5
    scored = summary['evaluations']['0']
    assert (scored['questions'], scored['failed'], scored['em']['mean'], scored['em']['interval']) == (5, 3, 1, (1, 1))
    gain = {'mean': 0, 'interval': 0, 'before': 1, 'after': 1, 'failed': 3}
    assert summary['em_gain'] | {'interval': 0} == gain
    made_of = [row for row in jsonl.read_jsonl(tmp_path / 'run' / 'metrics.jsonl') if 'reward/mean' in row]
    assert summary['failed_searches'] == sum(row['cost/failed_queries'] for row in made_of) > 0
    assert '5 questions; INCOMPLETE: 3 more failed' in shown
    assert f'{summary["failed_searches"]} of {summary["cost"]["queries"]} searches of the training failed' in shown


@pytest.mark.thorough
def test_questions_that_the_outside_failed_are_asked_again_at_the_next_start_and_no_others(made, tmp_path):
    FAILS.update(('q0', 'q1'))
    assert run(made, tmp_path / 'run')['evaluations']['2']['failed'] == 2
    ASKED.clear()
    summary = run(made, tmp_path / 'run')
    assert (sorted(ASKED), summary['evaluations']['2']['failed']) == (['q0', 'q1'], 2)  # too few to be an outage
    FAILS.clear()
    ASKED.clear()
    summary = run(made, tmp_path / 'run')
    assert sorted(ASKED) == ['q0', 'q1']
    assert (summary['evaluations']['2']['questions'], summary['evaluations']['2']['failed']) == (8, 0)
    assert metrics(tmp_path / 'run')[2, True].keys().isdisjoint({'eval/failed'})
    ASKED.clear()
    run(made, tmp_path / 'run')
    assert not ASKED


@pytest.mark.thorough
def test_a_dead_engine_is_noticed_where_few_search(made, tmp_path):
    """Two searches a step: too few to tell in one, and none that was answered in three."""
    rows = [{'id': f'q{i}x' if i else 'q0', 'question': f'why {i}?', 'golden_answers': ['b']} for i in range(4)]
    jsonl.write_jsonl(tmp_path / 'few.jsonl', rows)
    made.data.train = str(tmp_path / 'few.jsonl')
    made.evaluation.before = False
    made.rl.steps = 9
    made.rollout.update(questions=4, group=1)
    made.rl.algorithm = 'reinforce'
    FAILS.add('all')
    with pytest.raises(OutsideFailed, match='searches since the last one that was answered: 4 of 4 failed'):
        run(made, tmp_path / 'run')
    assert len(metrics(tmp_path / 'run')) == 3
