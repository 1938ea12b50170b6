"""Collection and audit end to end on a tiny model, their resumption, and what an audit asks and compares with."""

import json

import pytest

from configs.common import sections
from zerosearch_jax import settings
from zerosearch_jax.audit import audit, collect, measures
from zerosearch_jax.data import sources
from zerosearch_jax.data.pairs import load_pairs
from zerosearch_jax.run import jsonl
from zerosearch_jax.search.search import OutsideFailed, Result
from zerosearch_jax.simulator.verify import answers_of


def tiny_audit(**options):
    made = sections(audit.Config)
    made.audit.update({'queries': 4, 'gpu_hour_price': 2.0} | options)
    made.simulator.update(model='tiny', prompt_tokens=768, max_tokens=8, attempts=1, slots=4)
    made.reader.model = 'tiny'
    made.rollout.update(prompt_tokens=768, turn_tokens=128, observation_tokens=64, slots=4)
    return made


def run_audit(workdir, made):
    return audit.audit(audit.parse(made), workdir, settings.to_json(made))


def test_audits_of_a_directory_stand_side_by_side(tmp_path):
    run_audit(tmp_path, tiny_audit(name='one', read=True))
    oracle = tiny_audit(name='two')
    oracle.simulator.kind = 'oracle'
    table = run_audit(tmp_path, oracle)
    assert '| | one | two |' in table and table in (tmp_path / 'audit.md').read_text()
    found = json.loads((tmp_path / 'audit.json').read_text())
    assert found['one']['useful']['failed']['mean'] == 1  # random weights write no documents
    assert found['two']['gap']['hop_answer']['mean'] == 1  # gold passages of the first step against distractors
    assert found['two']['noisy']['contains']['mean'] == 0
    assert found['one']['queries'] == found['two']['queries'] == 4
    assert found['one']['speed']['queries'] == 8 and found['one']['speed']['tokens'] > 0
    assert 'read' in found['one']['useful'] and 'read' not in found['two']['useful']
    assert 'dollars for 1,000 queries at 2 an hour' in table
    assert (tmp_path / 'audit.png').stat().st_size > 1000


def test_an_interrupted_audit_asks_for_the_rest_only(tmp_path, monkeypatch):
    made = tiny_audit(name='one')
    run_audit(tmp_path / 'whole', made)
    rows = jsonl.read_jsonl(tmp_path / 'whole' / 'one' / 'answers.jsonl')
    here = tmp_path / 'part' / 'one'
    here.mkdir(parents=True)
    (here / 'config.json').write_text(settings.to_json(made))
    jsonl.write_jsonl(here / 'answers.jsonl', rows[:3])
    asked = []
    record = audit._row
    monkeypatch.setattr(audit, '_row', lambda result, *rest: asked.append(result) or record(result, *rest))
    run_audit(tmp_path / 'part', made)
    assert len(asked) == 5
    order = lambda rows: sorted(rows, key=lambda row: (row['id'], row['noisy']))  # noqa: E731
    assert order(jsonl.read_jsonl(here / 'answers.jsonl')) == order(rows)


class Flaky:
    """A simulator; those of its requests in `lost` fail outside."""

    engine, active = None, 0

    def __init__(self, lost):
        self.lost, self.asked = lost, []

    def source(self, **_):
        return self

    def submit(self, query):
        self.asked.append(query)
        self.active += 1

    def step(self):
        self.active -= 1
        query = self.asked[-self.active - 1]
        if len(self.asked) - self.active in self.lost:
            return [Result(query, failure='timeout', detail='busy')]
        return [Result(query, ('a document',))]


def test_what_fails_outside_is_not_counted_and_asked_again(tmp_path, monkeypatch, capsys):
    flaky, made = Flaky({2, 7}), tiny_audit(name='one', read=True)
    monkeypatch.setattr(audit, '_simulator', lambda *_: flaky)
    run_audit(tmp_path, made)
    assert '2 of 8 requests failed outside and are not counted' in capsys.readouterr().err
    figures = json.loads((tmp_path / 'audit.json').read_text())['one']
    assert figures['useful']['failed']['mean'] == figures['noisy']['failed']['mean'] == 0
    assert len(flaky.asked) == 8
    flaky.lost = {}
    run_audit(tmp_path, made)
    assert len(flaky.asked) == 10 and 'failed outside' not in capsys.readouterr().err
    answers = jsonl.read_jsonl(tmp_path / 'one' / 'answers.jsonl')
    assert len(answers) == 8 and all('read' in row for row in answers)


def test_an_audit_of_a_dead_server_ends_with_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, '_simulator', lambda *_: Flaky(range(99)))
    with pytest.raises(OutsideFailed, match=r'requests of the audit: 4 of 4 failed \(4 timeout\); .* busy'):
        run_audit(tmp_path, tiny_audit(name='one'))
    with pytest.raises(OutsideFailed, match='every request of the audit failed'):  # too few for an outage
        run_audit(tmp_path, tiny_audit(name='two', queries=1))


def test_questions_of_two_sources_with_one_id_are_refused(tmp_path):
    for name in 'ab':
        row = {'id': 'test_0', 'query': f'{name}?', 'question': f'what is {name}?', 'golden_answers': ['yes']}
        row |= {'documents': ['x'], 'label': 'useful'}
        (tmp_path / f'{name}.jsonl').write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r'different questions have the same id; .*data_source'):
        audit.queries(audit.parse(tiny_audit(source=f'{tmp_path}/a.jsonl,{tmp_path}/b.jsonl')))


@pytest.mark.parametrize('kind', ['oracle', 'engine', 'model'])
def test_foreign_searches_are_not_looked_up_in_the_built_in_corpus(kind, tmp_path):
    made = tiny_audit(source='searches.jsonl')
    made.simulator.kind = kind
    with pytest.raises(ValueError, match=r"corpus 'world' does not answer the questions of 'searches.jsonl'"):
        run_audit(tmp_path, made)


def test_0_queries_are_all_as_0_questions_are_elsewhere():
    made = tiny_audit()
    made.audit.queries = 0
    assert len(audit.queries(audit.parse(made))) == len(sources.load_questions('world', 'test'))


def test_another_configuration_under_the_same_name_is_refused(tmp_path):
    run_audit(tmp_path, tiny_audit(name='one'))
    with pytest.raises(ValueError, match='another configuration'):
        run_audit(tmp_path, tiny_audit(name='one', folds=(1,)))
    with pytest.raises(ValueError, match=r'config.audit.name'):
        audit.parse(tiny_audit(name='../x'))


# ---------------------------------------------------------------- what is asked, and what it is held against


def test_an_audit_can_ask_for_later_hops():
    first, also_first, second = (audit.queries(audit.parse(tiny_audit(queries=0, hop=hop))) for hop in (0, 1, 2))
    assert first == also_first
    steps = {q.id: q.metadata['decomposition'] for q in sources.load_questions('world', 'test')}
    assert {q.question.id for q in second} == {i for i, found in steps.items() if len(found) > 1} < steps.keys()
    for turn, asked in enumerate((first, second)):
        assert all(q.turn == turn and q.text == steps[q.question.id][turn]['query'] for q in asked)
        assert all(answers_of(q, 'hop').told == steps[q.question.id][turn]['answer'] for q in asked)
    with pytest.raises(ValueError, match='hop must not be negative'):
        audit.parse(tiny_audit(hop=-1))


def test_hops_of_a_file_of_questions_name_the_answers_of_those_before(tmp_path):
    steps = [
        {'question': 'Tower >> architect', 'answer': 'Ann'},
        {'question': '#1 >> place of birth', 'answer': 'Oslo'},
    ]
    row = {'id': 'x', 'question': 'Where was the architect of the Tower born?', 'golden_answers': ['Oslo'], 'fold': 7}
    rows = [row | {'decomposition': steps}, row | {'id': 'y'}, row | {'id': 'z', 'decomposition': steps, 'fold': 1}]
    (tmp_path / 'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    options = {'source': f'{tmp_path}/q.jsonl', 'corpus': '', 'folds': (7,)}
    asked = [audit.queries(audit.parse(tiny_audit(hop=hop, **options))) for hop in (1, 2)]
    assert [[q.text for q in part] for part in asked] == [['Tower >> architect'], ['Ann >> place of birth']]
    rows = [audit._row(Result(part[0]), False, 'final') for part in asked]
    assert [row['hop_answer'] for row in rows] == ['Ann', 'Oslo']
    assert [row['wanted_answers'] for row in rows] == [('Oslo',), ('Oslo',)]
    assert audit._row(Result(asked[0][0]), False, 'hop')['wanted_answers'] == ('Ann',)
    with pytest.raises(ValueError, match=r'questions with so many steps'):
        audit.queries(audit.parse(tiny_audit(hop=3, **options)))


def searches(tmp_path, corpus):
    """A file of recorded searches, two in fold 0 and one in fold 7, and its corpus."""
    (tmp_path / 'c.jsonl').write_text('\n'.join(json.dumps({'id': i, 'text': t}) for i, t in corpus.items()))
    row = {'golden_answers': ['Ann'], 'label': 'useful'}
    rows = [
        row | {'id': 'a', 'question': 'a?', 'query': 'river', 'doc_ids': ['0', '1'], 'fold': 0},
        row | {'id': 'b', 'question': 'b?', 'query': 'bridge', 'doc_ids': ['1'], 'fold': 0},
        row | {'id': 'c', 'question': 'c?', 'query': 'river bridge', 'doc_ids': ['2'], 'fold': 7},
    ]
    (tmp_path / 's.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    made = tiny_audit(source=f'{tmp_path}/s.jsonl', corpus=f'{tmp_path}/c.jsonl', folds=(7,), trained_folds=(0,))
    made.simulator.update(documents=2, words=4)
    return made


def test_documents_are_held_against_real_results_and_passages_of_the_training_folds(tmp_path):
    texts = ('the river of many words that nobody reads', 'a bridge by Ann over the river', 'other ' * 20 + 'river')
    made = searches(tmp_path, {str(i): text for i, text in enumerate(texts)})
    cfg = audit.parse(made)
    (query,) = audit.queries(cfg)
    row = {'id': 'c', 'query': query.text, 'golden_answers': ['Ann'], 'noisy': False}
    found = audit.reference(cfg, [row, row | {'noisy': True}])
    assert found.real == {'c': ['a bridge by Ann', 'the river of many']}  # by rank, of four words, with the answer
    assert sorted(found.collection) == sorted(texts)
    assert sorted(found.trained) == sorted(texts[:2])
    made.audit.trained_folds = ()
    assert audit.reference(audit.parse(made), [row]).trained == []
    made.audit.corpus = ''
    assert audit.reference(audit.parse(made), [row]) == measures.Reference()


def test_a_simulator_of_the_toy_was_trained_on_what_its_training_questions_find():
    made = tiny_audit(source='toy', corpus='toy', trained_folds=tuple(range(10)))
    made.simulator.documents = 1
    titles = {text.partition('.')[0] for text in audit.reference(audit.parse(made), []).trained}
    trained, held_out = ({q.id for q in sources.load_questions('toy', split)} for split in ('train', 'test'))
    assert titles & trained and len(titles & trained) > len(titles & held_out)


def test_figures_are_those_of_the_answers_on_disk(tmp_path):
    made = tiny_audit(name='one', source='toy', corpus='toy', trained_folds=tuple(range(10)))
    made.simulator.update(kind='oracle', documents=1)
    table = run_audit(tmp_path, made)
    found = json.loads((tmp_path / 'audit.json').read_text())['one']
    assert found['useful']['contains']['mean'] == 1 and found['real']['query_words']['mean'] == 1
    assert found['useful / real']['reciprocal_rank']['count'] == 4
    assert '| **About the query** |  |' in table and '| **Copies of training passages** |  |' in table
    answers = tmp_path / 'one' / 'answers.jsonl'
    jsonl.write_jsonl(answers, [row | {'documents': ['nothing']} for row in jsonl.read_jsonl(answers)])
    run_audit(tmp_path, made)  # asks for nothing: it is all there
    again = json.loads((tmp_path / 'audit.json').read_text())['one']
    assert again['useful']['contains']['mean'] == again['useful']['query_words']['mean'] == 0
    assert again['real'] == found['real']


# ---------------------------------------------------------------- collection


def tiny_collect(tmp_path, label='answer'):
    made = sections(collect.Config)
    made.policy.model = made.judge.model = 'tiny'
    made.collect.update(questions=3, documents=2, label=label)
    made.simulator.documents = 2
    made.rollout.update(prompt_tokens=768, response_tokens=400, turn_tokens=24, observation_tokens=64, slots=2, group=2)
    made.judge.update(prompt_tokens=2048, max_tokens=4, slots=2)
    return made


@pytest.fixture
def searching(monkeypatch):
    """Makes every episode of the random policy end as if it had searched twice, right in every second one."""
    row = collect.as_row

    def with_searches(trajectory, tokenizer, **extra):
        found = row(trajectory, tokenizer, **extra)
        documents = [f'{trajectory.question.id} is one', 'two', 'three']
        search = {'query': 'q', 'noisy': False, 'documents': documents, 'failure': '', 'attempts': 1}
        return found | {'em': float(trajectory.sample), 'searches': [search, search | {'documents': []}]}

    monkeypatch.setattr(collect, 'as_row', with_searches)


def run_collect(tmp_path, made):
    return collect.collect(collect.parse(made), tmp_path, settings.to_json(made))


def test_collected_searches_are_labelled_by_the_answer_and_load_as_pairs(tmp_path, searching):
    line = run_collect(tmp_path, tiny_collect(tmp_path))
    assert line == f'6 pairs in {tmp_path / "pairs.jsonl"} from 6 searches (3 noisy, 3 useful)'
    loaded = load_pairs(str(tmp_path / 'pairs.jsonl'))
    assert [pair.label for pair in loaded] == ['noisy', 'useful'] * 3
    for pair in loaded:
        assert pair.prompt.endswith(f'{pair.label.capitalize()} documents:')
        assert pair.completion.startswith('Doc 1: ') and '\nDoc 2: two' in pair.completion


def test_a_request_of_a_collection_tells_the_answer_that_its_documents_hold(tmp_path):
    made, found = collect.parse(tiny_collect(tmp_path)), {'query': 'q', 'documents': ['In the United States.', 'two']}
    row = {'id': 'i', 'sample': 0, 'question': 'Where?', 'golden_answers': ['America', 'United States']}
    useful, noisy = (collect._pair(made, row | {'searches': [found]}, 0, label) for label in ('useful', 'noisy'))
    assert 'United States' in useful['prompt'] and 'America' not in useful['prompt']
    assert 'America' in noisy['prompt'] and useful['golden_answers'] == noisy['golden_answers']


def test_a_collection_leaves_out_and_counts_what_is_too_long_and_refuses_a_foreign_corpus(tmp_path, searching, capsys):
    rows = [{'id': f'q{i}', 'question': 'why ' * (1 + 500 * i), 'golden_answers': ['b']} for i in range(3)]
    (tmp_path / 'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    (tmp_path / 'c.jsonl').write_text('{"text": "of everything"}')
    made = tiny_collect(tmp_path)
    made.collect.update(questions_from=str(tmp_path / 'q.jsonl'), questions=0)
    with pytest.raises(ValueError, match="the built-in corpus 'world' does not answer the questions of"):
        run_collect(tmp_path, made)
    made.collect.corpus = str(tmp_path / 'c.jsonl')
    assert run_collect(tmp_path, made).startswith('2 pairs')
    assert "questions too long for the prompt 'search': 2 left out" in capsys.readouterr().err


def test_pairs_load_with_datasets(tmp_path, searching):
    import datasets

    run_collect(tmp_path, tiny_collect(tmp_path))
    table = datasets.load_dataset('json', data_files=str(tmp_path / 'pairs.jsonl'), cache_dir=str(tmp_path / 'cache'))
    assert {'prompt', 'completion', 'label'} <= set(table['train'].column_names)
    assert len(table['train']) == 6


def test_a_collection_resumes_without_exploring_again(tmp_path, searching, monkeypatch):
    made = tiny_collect(tmp_path)
    run_collect(tmp_path, made)
    expected = (tmp_path / 'pairs.jsonl').read_text()
    rows = jsonl.read_jsonl(tmp_path / 'trajectories.jsonl')
    jsonl.write_jsonl(tmp_path / 'trajectories.jsonl', rows[:4])
    explored, rollout = [], collect.rollout
    monkeypatch.setattr(collect, 'rollout', lambda q, *a, **k: explored.extend(q) or rollout(q, *a, **k))
    run_collect(tmp_path, made)
    assert len(explored) == 1
    assert (tmp_path / 'pairs.jsonl').read_text() == expected


def test_a_judge_of_ours_labels_too(tmp_path, searching, monkeypatch):
    monkeypatch.setattr('zerosearch_jax.simulator.judge.verdict', lambda text: len(text) >= 0)
    line = run_collect(tmp_path, tiny_collect(tmp_path, 'judge'))
    assert line.startswith('6 pairs') and '(6 useful)' in line


def test_a_judge_that_is_dead_is_told_before_any_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, 'rollout', None)
    made = tiny_collect(tmp_path, 'judge')
    made.judge.update(kind='endpoint', model='m')
    made.endpoint.update(url='http://127.0.0.1:9/v1', retries=0)
    with pytest.raises(OutsideFailed, match='connection'):
        run_collect(tmp_path, made)


def test_what_a_judge_cannot_tell_is_left_out_and_said(tmp_path, searching, monkeypatch):
    labels = ['useful', 'timeout', 'unclear', 'noisy', 'timeout', 'timeout']
    monkeypatch.setattr(collect, 'judge', lambda searches, *_, **__: labels[: len(searches)])
    line = run_collect(tmp_path, tiny_collect(tmp_path, 'judge'))
    assert line.startswith('2 pairs')
    assert '3 timeout' in line and line.endswith('run the same command again to judge those that failed')
    labels[:] = ['useful', 'too_long', 'unclear', 'noisy', 'too_long', 'too_long']
    line = run_collect(tmp_path, tiny_collect(tmp_path, 'judge'))
    assert line.endswith('(1 noisy, 3 too_long, 1 unclear, 1 useful); 3 exceed config.judge.prompt_tokens')
