"""The methods of an evaluation on a scripted engine: what each is asked, may do, and is taken to have answered."""

import dataclasses

import pytest
from scripted import BYTES, CFG, EOS, OSLO, ROME, FakeEngine, FakeWriter, kinds, texts_of

from zerosearch_jax.evaluate.methods import METHODS, answer_questions, episode_config
from zerosearch_jax.search.search import Document, SearchFailed, engine_search
from zerosearch_jax.simulator.writers import EngineWriter
from zerosearch_jax.text.trajectory import Kind

SEARCH, ANSWER = '<think>a</think><search>city</search>', '<think>b</think><answer>Italy</answer>'


def found(queries, k):
    return [[Document('T', f'about {query}')] * k for query in queries]


def run(method, texts, search=found, refiner=None, questions=(ROME,), seed=0):
    def script(handle, number, engine):
        return [*BYTES.encode(texts[number]), EOS]

    engine, ended = FakeEngine(script), []
    trajectories = answer_questions(
        METHODS[method],
        questions,
        engine,
        lambda: engine_search(search, 2),
        refiner,
        BYTES,
        CFG,
        seed=seed,
        on_finished=ended.append,
    )
    assert sorted(t.question.id for t in ended) == sorted(t.question.id for t in trajectories)
    assert len(ended) == len(questions)
    return trajectories[0], engine


def prompt_of(trajectory):
    return BYTES.decode(trajectory.segments[0].tokens)


@pytest.mark.parametrize(('method', 'searches'), [('direct', 0), ('rag', 1)])
def test_all_that_is_written_is_the_answer_where_only_that_was_asked_for(method, searches):
    trajectory, engine = run(method, [' Italy \n'])
    assert (trajectory.answer, trajectory.status, kinds(trajectory)) == ('Italy', 'answered', 'PA')
    assert len(trajectory.searches) == searches
    assert ('about Where is Rome' in prompt_of(trajectory)) == bool(searches)
    assert engine.budgets[ROME.id, 0] == [episode_config(METHODS[method], CFG).turn_tokens]
    assert run(method, [''])[0].answer is None
    assert run(method, ['<answer>Italy</answer>', ''])[0].answer == 'Italy'


@pytest.mark.parametrize('method', ['direct', 'rag'])
def test_thoughts_before_a_plain_answer_are_no_part_of_it(method):
    assert run(method, ['<think>Oslo?</think>\nItaly'])[0].answer == 'Italy'
    assert run(method, ['<think>Oslo'])[0].answer is None


def test_documents_in_the_prompt_are_cut_and_harmless():
    long = lambda queries, k: [[Document('', '</information>' + 'x' * 5000)]]  # noqa: E731
    trajectory, _ = run('rag', ['Italy'], long)
    assert 'xxx' in prompt_of(trajectory) and '</information>' not in prompt_of(trajectory)
    assert prompt_of(trajectory).count('x') < CFG.observation_tokens


def test_chain_of_thought_has_no_search_and_needs_the_tags():
    assert run('cot', [ANSWER, ''])[0].answer == 'Italy'
    assert run('cot', ['Italy'])[0].answer is None
    trajectory, _ = run('cot', [SEARCH])
    assert (trajectory.status, trajectory.searches) == ('turn_limit', [])


def test_an_agent_searches_as_the_policy_does():
    trajectory, _ = run('agent', [SEARCH, ANSWER, ''])
    assert kinds(trajectory) == 'PAOAA' and trajectory.answer == 'Italy'
    assert 'about city' in texts_of(trajectory, Kind.OBSERVATION)[0]


def test_search_o1_reads_what_a_model_made_of_the_documents():
    refiner = FakeWriter('It is in <answer>Italy</answer>.')
    trajectory, _ = run('search_o1', [SEARCH, ANSWER, ''], refiner=refiner)
    (message,) = refiner.asked
    assert all(part in message for part in ('Where is Rome', '<think>a</think>', 'Query: city', 'about city'))
    (observation,) = texts_of(trajectory, Kind.OBSERVATION)
    assert 'It is in (answer)Italy(/answer).' in observation and 'about' not in observation
    assert trajectory.searches[0].documents == ('It is in (answer)Italy(/answer).',)


def test_thoughts_of_a_refiner_are_not_what_the_policy_reads():
    engine = FakeEngine(lambda *_: [*BYTES.encode('<think>Rome? draft</think>It is in Italy.'), EOS], stops=())
    refiner = EngineWriter(engine, BYTES, prompt_tokens=5000, max_tokens=200)
    trajectory, _ = run('search_o1', [SEARCH, ANSWER, ''], refiner=refiner)
    (text,) = texts_of(trajectory, Kind.OBSERVATION)
    assert 'It is in Italy.' in text and 'draft' not in text


def test_refinements_of_another_seed_are_drawn_anew():
    refiners = [FakeWriter() for _ in range(2)]
    for seed, refiner in enumerate(refiners):
        run('search_o1', [SEARCH, ANSWER, ''], refiner=refiner, seed=seed)
    assert refiners[0].asked == refiners[1].asked and refiners[0].identities != refiners[1].identities


def test_a_refinement_that_fails_fails_the_search_and_nothing_found_is_not_refined():
    assert run('search_o1', [SEARCH], refiner=FakeWriter(failure='timeout'))[0].status == 'search_failed'
    for failure in ('too_long', 'empty'):  # the model's own: the policy then reads them as they are
        trajectory, _ = run('search_o1', [SEARCH, ANSWER, ''], refiner=FakeWriter(failure=failure))
        assert 'about city' in texts_of(trajectory, Kind.OBSERVATION)[0] and trajectory.answer == 'Italy'
    refiner = FakeWriter()
    trajectory, _ = run('search_o1', [SEARCH, ANSWER, ''], lambda queries, k: [[] for _ in queries], refiner)
    assert not refiner.asked and trajectory.answer == 'Italy'
    assert 'No results' in texts_of(trajectory, Kind.OBSERVATION)[0]


def test_a_failed_first_search_fails_its_question_alone():
    def search(queries, k):
        return [SearchFailed('timeout') if 'Rome' in query else [Document('', 'x')] for query in queries]

    def script(handle, number, engine):
        return [*BYTES.encode('Norway'), EOS]

    engine, ended = FakeEngine(script), []
    answer_questions(
        METHODS['rag'],
        (ROME, OSLO),
        engine,
        lambda: engine_search(search, 2),
        None,
        BYTES,
        CFG,
        seed=0,
        on_finished=ended.append,
    )
    assert {t.question.id: (t.status, t.answer) for t in ended} == {
        'rome': ('search_failed', None),
        'oslo': ('answered', 'Norway'),
    }


def test_methods_without_turns_may_write_as_much_as_all_turns_together():
    small = dataclasses.replace(CFG, turn_tokens=100, response_tokens=350, observation_tokens=50, prompt_tokens=200)
    assert episode_config(METHODS['agent'], small) == small
    assert episode_config(METHODS['cot'], small).turn_tokens == 350
    assert episode_config(METHODS['cot'], dataclasses.replace(small, max_turns=1)).turn_tokens == 200
    rag = episode_config(METHODS['rag'], small)
    assert (rag.prompt_tokens, rag.response_tokens, rag.turn_tokens) == (250, 300, 300)
    whole = [
        episode_config(m, small).prompt_tokens + episode_config(m, small).response_tokens for m in METHODS.values()
    ]
    assert set(whole) == {550}  # one engine serves them all
