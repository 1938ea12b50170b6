"""Rows from which a simulator is fine-tuned: their forms, their errors, their labels, and where the loss is."""

import dataclasses
import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from zerosearch_jax.data import pairs
from zerosearch_jax.data.pairs import Pair, RecordedSearch, load_pairs
from zerosearch_jax.data.rows import Passage, Question, holds_answer
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.search.search import Document
from zerosearch_jax.simulator import prompts
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.text.tokenizer import byte_tokenizer
from zerosearch_jax.text.trajectory import Kind, flatten
from zerosearch_jax.train import demonstrations

BYTES = byte_tokenizer()
CORPUS = {f'p{i}': Passage(f'p{i}', f'T{i}', f'text of {i}') for i in range(4)}
SEARCH = {'id': 's', 'query': 'q', 'question': 'who?', 'golden_answers': ['Ann'], 'label': 'useful'}


def chat(**texts):
    return [{'role': role, 'content': text} for role, text in texts.items()]


@pytest.fixture
def write(tmp_path):
    def write(*rows, name='rows.jsonl'):
        (tmp_path / name).write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows) + '\n')
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        ({'prompt': 'a\nUseful documents:', 'completion': 'b'}, ('a\nUseful documents:', 'b', 'useful')),
        ({'prompt': 'a\nNoisy Output:\n', 'completion': 'b'}, ('a\nNoisy Output:\n', 'b', 'noisy')),
        ({'prompt': 'useful\na', 'completion': 'b'}, ('useful\na', 'b', '')),
        ({'prompt': 'a', 'completion': 'b', 'label': 'noisy'}, ('a', 'b', 'noisy')),
        ({'instruction': 'i', 'input': 'n', 'output': 'o'}, ('i\nn', 'o', '')),
        ({'instruction': 'i', 'input': '', 'output': 'o'}, ('i', 'o', '')),
        (
            {'messages': chat(system='', user='u', assistant='v')},
            ('u', 'v', ''),
        ),
    ],
)
def test_requests_and_completions_are_read_in_the_usual_forms(write, row, expected):
    (pair,) = load_pairs(write(row))
    assert (pair.prompt, pair.completion, pair.label) == expected
    assert isinstance(pair, Pair)


def test_messages_keep_system_and_history_and_the_loss_is_on_the_last_answer(write):
    turns = [
        ('system', 'be brief'),
        ('user', 'u1'),
        ('assistant', 'v1'),
        ('user', 'u2\nnoisy documents:'),
        ('assistant', 'v2'),
    ]
    messages = [{'role': role, 'content': content} for role, content in turns]
    (pair,) = load_pairs(write({'messages': messages}))
    assert (pair.prompt, pair.completion, pair.label) == ('u2\nnoisy documents:', 'v2', 'noisy')
    assert pair.history == tuple(messages[:3])
    prompt, completion = demonstrations.simulator_example(pair, SimulatorConfig(), BYTES)
    assert list(prompt.tokens) == BYTES.chat(messages[:-1])
    assert BYTES.decode(completion.tokens[:-1]) == 'v2' and completion.kind is Kind.ACTION


@pytest.mark.parametrize(
    'row',
    [
        {'prompt': 'a', 'completion': 'b <|im_end|>'},
        {'prompt': '<|im_start|>user\na<|im_end|>', 'completion': 'b'},
        {'instruction': 'a', 'output': '<|im_end|>'},
        {'messages': [*chat(system='<|im_end|>', user='u', assistant='v')]},
        {'messages': [*chat(user='u', assistant='<|im_end|>'), *chat(user='u', assistant='v')]},
    ],
)
def test_control_tokens_in_a_text_are_refused_with_the_line(write, row):
    path = write({'prompt': 'fine <think>', 'completion': 'fine'}, row)
    with pytest.raises(ValueError, match=r"rows.jsonl:2: a text holds '<\|im_(start|end)\|>', a control token"):
        load_pairs(path, control=demonstrations.control_tokens(BYTES))


def test_recorded_searches_name_their_passages_or_hold_them(write):
    by_id, by_text = load_pairs(
        write(SEARCH | {'doc_ids': ['p2', 'p0']}, SEARCH | {'id': 't', 'documents': ['x', 'y'], 'label': 'noisy'}),
        corpus=CORPUS,
    )
    assert [p.title for p in by_id.passages] == ['T2', 'T0']
    assert (by_id.query, by_id.question.question, by_id.question.golden_answers) == ('q', 'who?', ('Ann',))
    assert [p.text for p in by_text.passages] == ['x', 'y']
    assert (by_id.label, by_text.label) == ('useful', 'noisy')


def test_passages_may_be_named_by_numbers(write):
    corpus = {'0': Passage('0', '', 'zero'), '1': Passage('1', '', 'one')}
    (search,) = load_pairs(write(SEARCH | {'doc_ids': [1, '0']}), corpus=corpus)
    assert [p.text for p in search.passages] == ['one', 'zero']


def test_annotated_passages_give_a_useful_and_a_noisy_search(write):
    row = {'id': 'c', 'query': 'who?', 'golden_answers': ['Ann'], 'useful': ['p0'], 'noisy': ['p1', 'p2']}
    assert [s.label for s in load_pairs(write(row | {'noisy': []}), corpus=CORPUS)] == ['useful']
    found = load_pairs(write(row), corpus=CORPUS)
    assert [(s.id, s.label, len(s.passages)) for s in found] == [('c-useful', 'useful', 1), ('c-noisy', 'noisy', 2)]
    assert found[0].question.question == 'who?'


def test_rows_without_a_label_without_answers_or_of_other_folds_are_left_out(write, capsys):
    row = SEARCH | {'documents': ['x'], 'fold': 3}
    unknown, unscorable = row | {'label': None}, row | {'golden_answers': ['---']}
    found = load_pairs(write(row, row | {'id': 'other', 'fold': 4}, unknown, unscorable), folds=(3,))
    assert [search.id for search in found] == ['s']
    assert 'rows.jsonl: answers that cannot be scored: 1 left out' in capsys.readouterr().err
    other = load_pairs(write(row | {'judged': 'noisy'}), label='judged')
    assert [search.label for search in other] == ['noisy']


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ('{"prompt": "a"', 'not JSON'),
        ({'prompt': 'a'}, 'the fields prompt are no known form; expected prompt and completion'),
        ({'prompt': 'a', 'completion': ''}, "'completion' is '', expected text"),
        ({'prompt': 'a', 'completion': 'b', 'label': 'good'}, '\'label\' is \'good\', expected "useful" or "noisy"'),
        (
            {'messages': chat(user='u')},
            'of user and assistant in turn, the last one of assistant, at most one of system',
        ),
        ({'messages': 'hello'}, '"messages" needs role and content'),
        ({'messages': []}, '"messages" needs role and content'),
        ({'messages': None}, '"messages" needs role and content'),
        ({'messages': chat(system='s')}, "its roles are ['system']"),
        ({'messages': chat(assistant='v', user='u')}, "its roles are ['assistant', 'user']"),
        ({'messages': chat(user='u', system='s', assistant='v')}, "its roles are ['user', 'system', 'assistant']"),
        ({'messages': [*chat(user='u', assistant='v'), *chat(tool='t', assistant='w')]}, "'tool', 'assistant']"),
        (
            {'messages': [*chat(user='u', assistant='v'), *chat(user='x')]},
            "its roles are ['user', 'assistant', 'user']",
        ),
        ({'messages': chat(user='u', assistant=None)}, "'assistant' is missing"),
        (SEARCH | {'documents': []}, '"documents" must be a list of at least one text'),
        (SEARCH | {'doc_ids': []}, '"doc_ids" must be a list of at least one id of a passage'),
        ({'id': ['a'], 'prompt': 'a', 'completion': 'b'}, "'id' is ['a'], expected text"),
        (SEARCH | {'doc_ids': ['p9']}, 'passage \'p9\' of "doc_ids" is not in the corpus; is it the right corpus'),
        (SEARCH | {'doc_ids': 'p1'}, '"doc_ids" must be a list'),
        (SEARCH | {'documents': 'x'}, '"documents" must be a list of at least one text'),
        (SEARCH | {'documents': ['x', '']}, "'documents' is '', expected text"),
        (SEARCH | {'documents': ['x'], 'query': 7}, "'query' is 7, expected text"),
        ({'prompt': 'a', 'completion': '\ud83d'}, "'completion' is not valid Unicode"),
        ({'messages': chat(user='u', assistant=['a'])}, "'assistant' is ['a'], expected text"),
        ({'instruction': 'i', 'prompt': 'a', 'completion': 'b'}, "'output' is missing"),
        ({'instruction': 'i', 'input': math.nan, 'output': 'o'}, "'input' is nan, expected text"),
        ({'instruction': 'i', 'output': 'o', 'system': 's'}, '\'system\' is read only in "messages"'),
        ({'prompt': 'a', 'completion': 'b', 'history': [['q', 'a']]}, "'history' is read only"),
        (SEARCH | {'documents': ['x'], 'golden_answers': 7}, 'golden_answers'),
        (SEARCH | {'documents': ['x'], 'label': 1}, "'label' is 1"),
    ],
)
def test_a_malformed_row_is_reported_with_file_and_line(write, row, message):
    path = write({'prompt': 'fine', 'completion': 'fine'}, '', row)
    with pytest.raises(ValueError) as error:
        load_pairs(path, corpus=CORPUS)
    assert str(error.value).startswith(f'{path}:3: ')
    assert message in str(error.value)


def test_what_is_missing_around_the_rows_is_said(write):
    with pytest.raises(ValueError, match=r'rows.jsonl:1: .* name the corpus in config.demos.corpus'):
        load_pairs(write(SEARCH | {'doc_ids': ['p1']}))
    with pytest.raises(ValueError, match=r'rows.jsonl:1: no number in "fold"'):
        load_pairs(write({'prompt': 'a', 'completion': 'b'}), folds=(1,))


# ---------------------------------------------------------------- examples


@hypothesis.given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_balancing_keeps_as_many_of_both_and_nothing_twice(useful, noisy, seed):
    items = [Pair(f'u{i}', 'p', 'c', 'useful') for i in range(useful)]
    items += [Pair(f'n{i}', 'p', 'c', 'noisy') for i in range(noisy)]
    kept = demonstrations.balanced(items, seed)
    assert [item.label for item in kept] == ['useful', 'noisy'] * min(useful, noisy)
    assert len({item.id for item in kept}) == len(kept)
    assert demonstrations.balanced(items, seed) == kept


def test_balancing_says_how_many_it_leaves_out(capsys):
    items = [Pair(f'{label}{i}', 'p', 'c', label) for label, n in (('useful', 5), ('noisy', 2)) for i in range(n)]
    assert len(demonstrations.balanced(items, 0)) == 4
    assert '3 of 7 searches are left out' in capsys.readouterr().err


def test_balancing_unlabelled_rows_is_refused():
    with pytest.raises(ValueError, match=r'1 rows say neither .* first is x.*config.demos.balance=False'):
        demonstrations.balanced([Pair('x', 'p', 'c', ''), Pair('y', 'p', 'c', 'noisy')], 0)


def passages(*texts):
    return tuple(Passage(str(i), 'T', text) for i, text in enumerate(texts))


def recorded(label, *texts):
    return RecordedSearch('s', Question('s', 'Who wrote it', ('Ann Lee',)), 'its author', passages(*texts), label)


def test_the_loss_is_on_the_documents_and_the_end_only():
    item = recorded('noisy', 'one </answer> two', 'three')
    segments = demonstrations.simulator_example(item, SimulatorConfig(documents=2), BYTES)
    assert [s.kind for s in segments] == [Kind.PROMPT, Kind.ACTION]
    flat = flatten(segments)
    trained = flat.tokens[flat.weights > 0].tolist()
    assert BYTES.decode(trained[:-1]) == 'Doc 1: T. one (/answer) two\nDoc 2: T. three'
    assert trained[-1] == BYTES.eos_ids[0]
    prompt = BYTES.decode(flat.tokens[flat.weights == 0].tolist())
    assert 'Noisy documents:' in prompt and 'Ann Lee' in prompt and 'Query: its author\n' in prompt


def test_control_tokens_in_a_document_are_not_taught():
    item = recorded('noisy', 'one <|im_end|> two', '<|im_<|im_end|>end|>')
    segments = demonstrations.simulator_example(item, SimulatorConfig(documents=2), BYTES)
    taught = BYTES.decode(segments[1].tokens[:-1])
    assert not any(token in taught for token in demonstrations.control_tokens(BYTES))
    assert taught.startswith('Doc 1: T. one') and '\nDoc 2: T. ' in taught
    assert BYTES.eos_ids[0] not in segments[1].tokens[:-1]


def test_an_episode_that_its_budgets_forbid_is_not_shown():
    steps = [{'query': f'q{i}', 'passage': f'p{i}', 'need': 'it', 'answer': 'x'} for i in range(2)]
    question = Question('q', 'who?', ('Ann',), metadata={'decomposition': steps})

    def search(queries, k):
        return [[Document('', 'text', query.replace('q', 'p'))] for query in queries]

    def episode(**budgets):
        cfg = RolloutConfig(**{'prompt_tokens': 512, 'max_turns': 2} | budgets)
        return demonstrations.policy_episode(question, search, BYTES, cfg, 1)

    made = episode(turn_tokens=400, response_tokens=2000)
    actions = [len(s.tokens) for s in made if s.kind is Kind.ACTION]
    assert len(actions) == 3
    assert episode(turn_tokens=400, response_tokens=2000, prompt_tokens=9) is None
    assert episode(turn_tokens=max(actions), response_tokens=2000) is not None
    assert episode(turn_tokens=max(actions) - 1, response_tokens=2000) is None
    assert episode(turn_tokens=400, response_tokens=2000, max_turns=1) is None
    assert episode(turn_tokens=400, response_tokens=sum(len(s.tokens) for s in made[1:]) - 1) is None


def test_a_pair_is_taken_word_for_word():
    segments = demonstrations.simulator_example(Pair('x', 'my prompt', 'my completion', ''), SimulatorConfig(), BYTES)
    assert BYTES.decode(segments[1].tokens[:-1]) == 'my completion'
    assert 'my prompt' in BYTES.decode(segments[0].tokens)


def test_what_is_trained_on_is_read_back_as_documents():
    item = demonstrations.recorded_search(recorded('noisy', *(f'{i} ' + 'w ' * i for i in range(5))), 3, 30)
    completion = demonstrations.simulator_example(item, SimulatorConfig(), BYTES)[1].tokens[:-1]
    documents, failure = prompts.parse_documents(BYTES.decode(completion), 3, 30)
    assert failure == '' and len(documents) == 3


def test_the_label_of_a_recorded_search_is_true_of_what_is_kept():
    texts = ('Ann Lee did so long ago', 'nothing', 'the work of Ann Lee, 1900', 'never', 'Ann Lee did so')
    useful, noisy = (demonstrations.recorded_search(recorded(label, *texts), 2, 30) for label in pairs.LABELS)
    assert [p.text for p in useful.passages] == [texts[0], texts[2]]  # the last says what the first does
    assert [p.text for p in noisy.passages] == ['nothing', 'never']
    assert demonstrations.recorded_search(recorded('noisy', *texts), 3, 30) is None
    assert len(demonstrations.recorded_search(recorded('useful', *texts), 3, 30).passages) == 2
    assert demonstrations.recorded_search(recorded('useful', 'nothing', 'never'), 1, 30) is None


@pytest.mark.parametrize(('label', 'expected'), [('useful', 'Ann Lee did|nothing'), ('noisy', 'nothing|Ann Lee did')])
def test_of_a_search_that_a_judge_labelled_the_best_documents_are_kept(label, expected):
    made = demonstrations.recorded_search(recorded(label, 'nothing', 'Ann Lee did'), 2, 30, checked=False)
    assert '|'.join(p.text for p in made.passages) == expected
    assert demonstrations.recorded_search(recorded(label, 'nothing', 'Ann Lee did'), 3, 30, checked=False) is None


def test_the_answer_that_is_told_is_the_one_that_most_documents_hold():
    search = recorded('useful', 'nothing', 'It was Lee.', 'It was Ann Lee.', 'Ann Bo Lee')
    answers = ('Ann Bo Lee', 'Ann Lee', 'Lee')
    search = dataclasses.replace(search, question=dataclasses.replace(search.question, golden_answers=answers))
    made = demonstrations.recorded_search(search, 3, 30)
    assert made.question.golden_answers == ('Lee', 'Ann Bo Lee', 'Ann Lee')
    request = BYTES.decode(demonstrations.simulator_example(made, SimulatorConfig(template='told'), BYTES)[0].tokens)
    assert 'Query: its author\nQuestion: Who wrote it\nAnswer: Lee\nUseful documents:' in request


def test_a_search_for_a_yes_or_no_is_left_out_because_its_label_cannot_be_checked():
    for label in pairs.LABELS:
        search = recorded(label, 'nothing', 'no, never', 'not at all')
        search = dataclasses.replace(search, question=dataclasses.replace(search.question, golden_answers=('no',)))
        assert demonstrations.recorded_search(search, 1, 30) is None
        assert demonstrations.recorded_search(search, 1, 30, checked=False) is not None


def told(name, answer, *texts, query='asked', label='useful'):
    passages = tuple(Passage(f'{name}{i}', 'T', text) for i, text in enumerate(texts))
    return RecordedSearch(name, Question(name, f'which {name}?', (answer,)), query, passages, label)


def test_searches_of_few_documents_or_beside_the_query_are_left_out():
    asked = {'query': 'the length of the Nile', 'label': 'noisy'}  # two words count
    found = [
        told('half', 'x', 'the Nile', 'else', **asked),
        told('one', 'x', 'length of the Nile', **asked),
        told('none', 'x', 'of the', 'else', **asked),
        told('both', 'x', 'else', 'Nile: length', **asked),
        Pair('pair', 'p', 'c', ''),
    ]

    def kept(**least):
        return [item.id for item in demonstrations.chosen_searches(found, **least)]

    assert kept(fewest=1, query_words=0.0) == ['half', 'one', 'none', 'both', 'pair']
    assert kept(fewest=2, query_words=0.5) == ['half', 'both', 'pair']
    assert kept(fewest=1, query_words=0.6) == ['one', 'both', 'pair']


def test_exchanged_answers_stand_in_request_and_documents_alike():
    """Answers wander among searches of like form; labels stay true, and nothing else of a text changes."""
    searches = [
        told(f's{i}', answer, f'In {answer}, it was {answer}.', 'else')
        for i, answer in enumerate(['1967', '1812', '2001'])
    ]
    made = demonstrations.exchange_answers(searches, 1.0, 0)
    assert {m.question.golden_answers[0] for m in made} == {'1967', '1812', '2001'}
    for before, after in zip(searches, made, strict=True):
        (old,), (new,) = before.question.golden_answers, after.question.golden_answers
        assert new != old
        assert [p.text for p in after.passages] == [f'In {new}, it was {new}.', 'else']
        assert (after.query, after.question.question, after.label) == (before.query, before.question.question, 'useful')
        hops = {'decomposition': [{'query': after.query, 'answer': old}]}
        after = dataclasses.replace(after, question=dataclasses.replace(after.question, metadata=hops))
        for tell in ('final', 'hop'):
            cfg = SimulatorConfig(template='told', tell=tell)
            request = demonstrations.simulator_example(after, cfg, BYTES)[0]
            assert f'Answer: {new}\n' in BYTES.decode(request.tokens)
    assert demonstrations.exchange_answers(searches, 0.0, 0) == searches
    assert demonstrations.exchange_answers(searches, 1.0, 0) == made


@pytest.mark.parametrize(
    'other',
    [
        told('o', '19 May 1967', 'on 19 May 1967'),  # of another form
        told('o', '1812', 'in 1812', label='noisy'),
        told('o', '1812', 'in 1812', query='what of 1967?'),  # it says the answer that it would be told
    ],
)
def test_answers_are_not_exchanged_where_that_would_make_no_sense(other):
    made = demonstrations.exchange_answers([told('s', '1967', 'in 1967'), other], 1.0, 0)
    assert made[1] == other


def test_a_word_that_contains_an_answer_is_not_torn():
    made = demonstrations.exchange_answers([told('a', 'art', 'art of Artur'), told('b', 'war', 'war')], 1.0, 0)
    assert made[0].passages[0].text == 'war of Artur'
    searches = [told('a', 'art', 'the Arts'), told('b', 'war', 'war')]  # it does not hold what it tells
    assert demonstrations.exchange_answers(searches, 1.0, 0)[0] == searches[0]


@hypothesis.given(st.integers(0, 90), st.integers(4, 40))
def test_an_excerpt_of_a_long_sentence_has_so_many_words_and_keeps_the_answer(position, words):
    text = ' '.join([*map(str, range(position)), 'ann', 'lee', *map(str, range(position, 90))])
    cut = demonstrations.excerpt('', text, words, ('Ann Lee',))
    assert len(cut.split()) <= words
    assert holds_answer(cut, ('Ann Lee',))
    assert cut in text
    assert demonstrations.excerpt('', text, words, ('absent',)) == ' '.join(text.split()[:words])


@pytest.mark.parametrize(
    ('text', 'answers', 'expected'),
    [
        ('One two. Three four five. Six.', (), 'One two. Three four five.'),
        ('One two. Three four five. Six.', ('four',), 'Three four five. Six.'),
        ('One two. Three Ann Lee five. Ann Lee.', ('Ann Lee',), 'Three Ann Lee five.'),
        ('end of it. One two three.', (), 'One two three.'),  # what begins within another sentence is left out ...
        ('end of Ann. One two three.', ('Ann',), 'end of Ann.'),  # ... but for the answer
        ('The Book One two three.', (), 'One two three.'),  # an encyclopedia's title before the text
        ('The Book is one.', (), 'The Book is one.'),
        ('The BookS are one.', (), 'The BookS are one.'),  # a longer word that begins alike
        ('By J. K. Lee of St. Ives. Two.', (), 'By J. K. Lee of St. Ives.'),
        ('Was it? "Yes" it was! (No.)', (), 'Was it? "Yes" it was!'),
        ('', (), ''),
    ],
)
def test_an_excerpt_is_whole_sentences(text, answers, expected):
    assert demonstrations.excerpt('The Book', text, 5, answers) == expected


def world(turn, noisy, documents=2):
    steps = [{'query': f'q{i}', 'passage': f'p{i}', 'need': 'it', 'answer': f'hop{i}'} for i in range(2)]
    question = Question('q', 'who?', ('last',), metadata={'decomposition': steps})
    found = [
        Document('A', 'last'),
        Document('B', 'none'),
        Document('C', 'hop0', 'p0'),
        Document('D', 'hop1 last', 'p1'),
    ]
    found += [Document('E', 'nil'), Document('F', 'naught')]
    rng = np.random.default_rng(0)
    return demonstrations.world_search(
        question, noisy, lambda q, k: [found[:k]], documents=documents, turn=turn, rng=rng
    )


@pytest.mark.parametrize('turn', [0, 1])
def test_a_search_of_the_world_tells_what_its_right_passage_holds(turn):
    useful, noisy = world(turn, False), world(turn, True)
    assert useful.passages[0].id == f'p{turn}' and len(useful.passages) == 2
    assert useful.question.golden_answers == (f'hop{turn}',) and useful.query == f'q{turn}'
    assert not any(holds_answer(p.text, ('last', f'hop{turn}')) for p in noisy.passages) and len(noisy.passages) == 2
    assert world(turn, True, 5) is None


def test_answers_are_found_word_for_word():
    assert holds_answer('It was the U.S. Army.', ('US Army',))
    assert not holds_answer('a planet', ('plan',))
    assert not holds_answer('', ('x',))
