"""Which answers the documents of a query are to hold or to withhold, and whether they do."""

import pytest

from zerosearch_jax.data import rows, world
from zerosearch_jax.data.rows import Question, normalize_answer
from zerosearch_jax.search.search import Query
from zerosearch_jax.simulator import verify
from zerosearch_jax.simulator.verify import Answers, answers_of, content_words


def answers(question, text, turn=0, tell='hop'):
    return answers_of(Query('h', question, 0, turn, text), tell)


def comparison():
    """A comparison of the world of two places with as many words each."""

    def alike(question):
        return len({len(content_words(step['query'])) for step in question.metadata['decomposition']}) == 1

    return next(q for q in world.build().train if q.metadata['type'] == 'larger_city' and alike(q))


# three hops as MuSiQue writes them: what an earlier hop found is '#1', '#2'
MANOR = Question(
    'manor',
    'In what year did the river by which the painter of The Manor was born flood the town?',
    ('1912', 'In 1912.'),
    metadata={
        'decomposition': [
            {'question': 'The Manor >> painter', 'answer': 'Ada Holm', 'pid': 'p1'},
            {'question': 'By which river was #1 born?', 'answer': 'Skarn', 'pid': 'p2'},
            {'question': 'when did #2 flood the town', 'answer': 'In 1912', 'pid': None},
        ]
    },
)


@pytest.mark.parametrize(
    ('text', 'hop', 'useful'),
    [
        ('who painted The Manor', 'Ada Holm', ('Ada Holm',)),
        ('Ada Holm birthplace river', 'Skarn', ('Skarn',)),
        ('Ada Holm', 'Skarn', ('Skarn',)),
        ('Skarn flood', 'In 1912', ('In 1912', '1912', 'In 1912.')),
        ('Skarn', 'In 1912', ('In 1912', '1912', 'In 1912.')),
    ],
)
def test_of_three_hops_the_one_that_a_query_asks_for(text, hop, useful):
    for turn in range(4):  # the words decide, not the turn
        found = answers(MANOR, text, turn)
        assert (found.told, found.useful) == (hop, useful)
        assert set(found.noisy) == {hop, '1912', 'In 1912.'}


def test_of_several_hops_with_as_many_words_of_the_query_the_one_nearest_to_its_turn():
    assert [answers(MANOR, 'xyzzy', turn).told for turn in range(5)] == ['Ada Holm', 'Skarn', *['In 1912'] * 3]
    assert [answers(MANOR, 'river flood', turn).told for turn in range(3)] == ['Skarn', 'Skarn', 'In 1912']


def test_every_hop_of_the_world_is_told_its_answer():
    seen = 0
    for question in world.build().train[::40]:
        for turn, step in enumerate(question.metadata['decomposition']):
            found = answers(question, step['query'], turn)
            assert found.told == step['answer']
            assert found.useful == (step['answer'],) or set(found.useful) == {step['answer'], *question.golden_answers}
            seen += turn > 0
    assert seen > 10


def test_a_comparison_has_its_own_number_a_side_and_noise_may_say_what_the_query_says():
    question = comparison()
    for step in question.metadata['decomposition']:
        for turn in (0, 1):
            found = answers(question, step['query'], turn)
            assert found.told == step['answer'] and found.useful == (step['answer'],)
    larger = question.golden_answers[0]
    assert [larger in answers(question, text).noisy for text in (f'population of {larger}', 'other')] == [False, True]
    both = [answers(question, question.question, turn).told for turn in (0, 1)]
    assert both == [step['answer'] for step in question.metadata['decomposition']]


def test_a_hop_whose_answer_is_a_number_has_it_as_text():
    steps = [{'question': 'When was Ann born?', 'answer': 1932.0}, {'query': 'who won in #1', 'answer': 7}]
    question = Question('q', 'Who?', ('Bo',), metadata={'decomposition': steps})
    assert verify.hops_of(question) == [('When was Ann born?', '1932'), ('who won in 1932', '7')]


@pytest.mark.parametrize(
    'decomposition',
    [
        None,
        [],
        'no list',
        ['Who painted The Manor?'],
        [{'question': 'a >> b'}],
        [{'query': 'a', 'answer': True}],
        [{'query': None, 'answer': 'b'}],
        [{'query': 'a', 'answer': 'b'}, None],
    ],
)
def test_a_question_that_tells_not_all_of_its_hops_has_its_own_answers(decomposition):
    question = Question('q', 'Who?', ('Ann', 'Bo'), metadata={'decomposition': decomposition})
    own = Answers('Ann', ('Ann', 'Bo'), ('Ann', 'Bo'))
    assert answers(question, 'a') == answers(question, 'a', tell='final') == own


def test_final_and_none_look_for_the_questions_own_answers_and_none_tells_none():
    final, none = (answers(MANOR, 'who painted The Manor', tell=tell) for tell in ('final', 'none'))
    assert final == Answers('1912', MANOR.golden_answers, MANOR.golden_answers)
    assert none == Answers('', final.useful, final.noisy)
    assert answers(Question('q', 'Who?', ()), 'x') == Answers('', (), ())


def test_an_alias_in_the_query_is_not_held_against_noise_and_another_is():
    question = Question('q', 'Who made it?', ('Thomas Edison', 'Edison', 'Thomas Alva Edison', 'Thom'))
    found = answers(question, 'Is thomas edison, the inventor', tell='final')
    assert found.noisy == ('Thomas Alva Edison', 'Thom')  # 'Thom' is no word of the query
    assert found.useful == question.golden_answers
    assert answers(question, 'Edison', tell='final').noisy == ('Thomas Edison', 'Thomas Alva Edison', 'Thom')


def test_a_query_is_normalized_once_however_many_answers_there_are(monkeypatch):
    seen = []
    for module in (rows, verify):
        monkeypatch.setattr(module, 'normalize_answer', lambda text: seen.append(text) or normalize_answer(text))
    question = Question('q', 'Who?', tuple(f'answer {i}' for i in range(50)))
    assert answers(question, 'who was it').noisy == question.golden_answers
    assert seen.count('who was it') == 1


@pytest.mark.parametrize('golds', [('yes',), ('No.',), ('no', 'They are not'), ('the',)])
def test_yes_and_no_and_what_is_no_word_cannot_be_checked(golds):
    found = answers(Question('q', 'Is it?', golds), 'x', tell='final')
    assert found == Answers(golds[0], (), ())
    hops = [{'query': 'capital', 'answer': 'Rome'}, {'query': 'in Italy', 'answer': golds[0]}]
    question = Question('q', 'Is it?', golds, metadata={'decomposition': hops})
    assert answers(question, 'capital') == Answers('Rome', ('Rome',), ('Rome',))
    assert answers(question, 'Italy') == Answers(golds[0], (), ())


def test_one_useful_document_is_enough_and_one_noisy_one_too_many():
    about = Answers('', ('Rome', 'Roma'), ('Rome',))
    for documents, useful, noisy in [
        (('x', 'In ROMA.'), True, True),
        (('the Rome, Italy', 'x'), True, False),
        (('Romeo', 'x'), False, True),
    ]:
        assert (about.agree(documents, False), about.agree(documents, True)) == (useful, noisy)
    assert Answers('', (), ('Rome',)).agree(('x',), False) is None
    assert Answers('', ('Rome',), ()).agree(('x',), True) is None


def test_content_words_are_those_that_say_what_a_text_is_about():
    assert content_words("What is the Capital of São Paulo's state?") == {'capital', 'são', 'paulo', 'state'}
