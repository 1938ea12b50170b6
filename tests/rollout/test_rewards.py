"""Rewards of trajectories, alarms, and the published system's mistakes, each switch in both positions."""

import dataclasses
import functools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scripted import BYTES, CFG, OSLO, PARIS, ROME, FakeEngine, FakeSearch, play
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from configs import common, llama3_2_3b, qwen2_5_3b, qwen2_5_7b, toy
from zerosearch_jax.data import sources
from zerosearch_jax.data.rows import Question
from zerosearch_jax.generate.requests import Stopped
from zerosearch_jax.rl import state
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import encode_observation, encode_prompt, policy_prompt, readable
from zerosearch_jax.rollout.rewards import RewardConfig, Scorer, actions, found_answer, overlong_penalty, well_formed
from zerosearch_jax.rollout.rollout import Trajectory, _Episode, rollout
from zerosearch_jax.search.search import Query, Result
from zerosearch_jax.simulator.simulator import CompactedQuestions
from zerosearch_jax.text.tokenizer import Tokenizer, byte_tokenizer
from zerosearch_jax.train import config
from zerosearch_jax.train.config import EvaluationConfig
from zerosearch_jax.train.trainer import Trainer, load_questions

EXPERIMENT = config.parse(toy.get_config())
SEARCH, ANSWER = '<think>a</think>\n<search>b</search>', '<think>c</think> <answer>Italy</answer>'


def score(texts, search=None, budget=10_000, **cfg):
    trajectory = play([*texts, ''], search)[0]
    return Scorer(RewardConfig(**cfg), BYTES, budget)(trajectory)


def test_the_answer_is_scored_by_the_chosen_measure():
    text = '<answer>the Italy land</answer>'
    assert score([text]) == pytest.approx(2 / 3)
    assert (score([text], answer='em'), score([text], answer='cover_em')) == (0, 1)


def shortness(trajectory, golds):
    return len(golds) / trajectory.response_tokens


def test_a_reward_of_ones_own_is_named_by_its_dotted_name():
    assert score([ANSWER], answer='test_rewards.shortness') == pytest.approx(1 / (len(ANSWER) + 1))
    for name in ('f2', 'nowhere.f', 'test_rewards.nothing', 'math.pi', ''):
        with pytest.raises(ValueError, match='answer = '):
            RewardConfig(answer=name)


def returned(trajectory, golds):
    """What the question's only golden answer spells; a KeyError where it spells nothing that is known."""
    values = {
        'NaN': float('nan'),
        'inf': -np.inf,
        'None': None,
        'text': '1.0',
        'list': [1.0],
        'huge': 10**400,
        'beyond float32': 1e300,
    }
    values |= {'True': True, 'numpy': np.float32(0.5), 'array': np.ones(2), 'jax': jnp.float32(0.25), 'int': 2}
    return values[golds[0]]


def rewarded(what):
    question = dataclasses.replace(ROME, golden_answers=(what,))
    trajectory = play([ANSWER, ''], questions=(question,))[0]
    return Scorer(RewardConfig(answer='test_rewards.returned'), BYTES, 10_000)(trajectory)


@pytest.mark.parametrize(
    ('what', 'problem'),
    [
        ('NaN', 'nan'),
        ('inf', '-inf'),
        ('beyond float32', '1e+300'),
        ('None', 'TypeError: must be real number, not NoneType'),
        ('text', 'TypeError: must be real number, not str'),
        ('list', 'TypeError: must be real number, not list'),
        ('array', 'TypeError: only'),
        ('huge', 'OverflowError: '),
        ('raises', "KeyError: 'raises'"),
    ],
)
def test_an_own_reward_that_returns_nan_inf_or_none_or_raises_is_named_with_its_question(what, problem):
    with pytest.raises(ValueError) as error:
        rewarded(what)
    assert "config.reward.answer = 'test_rewards.returned'" in str(error.value)
    assert f'question {ROME.id!r} ({ROME.question}): {problem}' in str(error.value)
    assert '\n' not in str(error.value) and (error.value.__cause__ is not None) == (': ' in problem)


def test_an_own_reward_may_return_any_finite_number():
    got = [rewarded(what) for what in ('True', 'numpy', 'jax', 'int')]
    assert got == [1.0, 0.5, 0.25, 2.0] and all(type(reward) is float for reward in got)


@pytest.mark.parametrize('text', ['1 / 0', 'def f(', 'import nowhere_at_all', 'raise OSError'])
def test_an_own_reward_whose_file_cannot_be_imported_is_named(tmp_path, monkeypatch, text):
    name = f'own_reward_{abs(hash(text))}'
    (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"answer = '{name}.f' is none of .* cannot be imported"):
        RewardConfig(answer=f'{name}.f')


@pytest.mark.parametrize(
    ('texts', 'expected'),
    [
        ([ANSWER], True),
        ([SEARCH, ANSWER], True),
        ([SEARCH, SEARCH, ANSWER], True),
        (['<answer>Italy</answer>'], False),
        (['<think>a</think><search>b</search>'], False),
        ([SEARCH, 'well ' + ANSWER], False),
        (['<search>b</search>', ANSWER], False),
        (['<think>a<think>b</think></think><answer>x</answer>'], False),
        (['<think>a</think> <answer></answer>'], False),
        (['<think>a</think> <answer> \n</answer>'], False),
        (['<think>a</think><search> </search>', ANSWER], False),
        (['<think>a</think> <answer> < 5</answer>'], True),
        ([], False),
    ],
)
def test_the_grammar_of_actions(texts, expected):
    assert well_formed(texts) is expected


STEPS = [('mayor of Rome', 'Ada Poe'), ('birthplace of Ada Poe', 'Bari')]
CHAIN = dataclasses.replace(
    ROME, golden_answers=('Bari',), metadata={'decomposition': [dict(query=q, answer=a) for q, a in STEPS]}
)
FIRST, SECOND, FINAL = '<search>Rome mayor</search>', '<search>Ada Poe birthplace</search>', '<answer>Bari</answer>'
FACTS = {'Rome mayor': 'The mayor is Ada Poe', 'Ada Poe birthplace': 'Born in Bari'}


def turn_rewards(texts, facts=FACTS, question=CHAIN, **cfg):
    search = FakeSearch(lambda query: Result(query, ('Something.', facts.get(query.text, 'Nothing.'))))
    trajectory = play([*texts, ''], search, questions=(question,))[0]
    scorer = Scorer(RewardConfig(**cfg), BYTES, 10_000)
    assert scorer(trajectory) == pytest.approx(sum(scorer.by_turn(trajectory)))
    return pytest.approx(scorer.by_turn(trajectory).tolist())


@pytest.mark.parametrize(
    ('texts', 'expected'),
    [
        ([FIRST, SECOND, FINAL], [0.2, 0.2, 1]),
        ([SECOND, FIRST, FINAL], [0.2, 0.2, 1]),  # in whichever order
        ([FIRST, FIRST, FINAL], [0.2, 0, 1]),  # not what was brought before
        ([FIRST, 'nothing', SECOND, FINAL], [0.2, 0, 0.2, 1]),  # a turn without a search is a turn
        (['<search>Bari</search>', FINAL], [0, 1]),
        ([FIRST, '<answer>x</answer>'], [0.2, 0]),
    ],
)
def test_a_search_earns_the_hop_that_it_brings_anew(texts, expected):
    assert turn_rewards(texts, hop=0.2) == expected


def test_a_final_answer_that_comes_before_it_is_asked_for_is_no_hop():
    leak = {'Rome mayor': 'Somebody of Bari'}
    assert turn_rewards([FIRST, FINAL], leak, hop=0.2) == [0, 1]


def test_hops_are_of_questions_that_tell_them_and_not_yes_or_no():
    assert turn_rewards([FIRST, SECOND, FINAL], question=dataclasses.replace(CHAIN, metadata={}), hop=0.2) == [0, 0, 1]
    steps = {'decomposition': [dict(query='mayor of Rome', answer='yes')]}
    agreed = {'Rome mayor': 'Yes'}
    assert turn_rewards([FIRST, FINAL], agreed, question=dataclasses.replace(CHAIN, metadata=steps), hop=0.2) == [0, 1]


def test_a_reward_for_hops_is_refused_where_no_question_tells_its_hops(tmp_path):
    (tmp_path / 'q.jsonl').write_text('{"question": "Where is Rome", "golden_answers": ["Italy"]}\n' * 8)
    plain = dataclasses.replace(EXPERIMENT.data, train=str(tmp_path / 'q.jsonl'))
    cfg = dataclasses.replace(EXPERIMENT, data=plain, simulator=dataclasses.replace(EXPERIMENT.simulator, kind='model'))
    assert len(load_questions(cfg)[0]) == 8
    with pytest.raises(ValueError, match=r'config.reward.hop: no question of .*q.jsonl. lists its hops'):
        load_questions(dataclasses.replace(cfg, reward=RewardConfig(hop=0.2)))
    assert load_questions(dataclasses.replace(EXPERIMENT, reward=RewardConfig(hop=0.2)))  # the toy's do


def test_every_search_has_its_price_and_turns_earn_nothing_by_default():
    assert turn_rewards([FIRST, 'nothing', FIRST, FINAL], search=0.1) == [-0.1, 0, -0.1, 1]
    assert turn_rewards([FIRST, SECOND, FINAL], search=0.1, hop=0.2) == [0.1, 0.1, 1]
    assert turn_rewards([FIRST, SECOND, FINAL]) == [0, 0, 1]


def numbered(trajectory):
    return {'Italy': range(trajectory.turns), 'short': [1.0]}.get(
        trajectory.question.golden_answers[0], [float('nan')] * 2
    )


def test_a_turn_reward_of_ones_own_gives_a_finite_number_a_turn():
    assert turn_rewards([FIRST, SECOND, ANSWER], question=ROME, turn='test_rewards.numbered') == [0, 1, 3]
    for golds, said in (('short',), '1.0'), (('other',), 'nan, nan'):
        with pytest.raises(
            ValueError, match=f"config.reward.turn = 'test_rewards.numbered' gives no .* 2 turns .*: {said}"
        ):
            question = dataclasses.replace(ROME, golden_answers=golds)
            turn_rewards([FIRST, ANSWER], question=question, turn='test_rewards.numbered')
    for name in ('nowhere.f', 'math.pi', 'f2'):
        with pytest.raises(ValueError, match='turn = '):
            RewardConfig(turn=name)


def test_form_and_retrieval_are_added():
    good, bad = score([SEARCH, ANSWER], format=0.2), score(['<search>b</search>', ANSWER], format=0.2)
    assert (good, bad) == (pytest.approx(1.2), 1)
    finds = FakeSearch(lambda query: Result(query, ('In Italy.',)))
    assert score([SEARCH, ANSWER], finds, retrieval=0.1) == pytest.approx(1.1)
    assert score([SEARCH, ANSWER], retrieval=0.1) == 1
    documents_only = FakeSearch(lambda query: Result(query, (f'{ANSWER} {SEARCH}',)))
    assert score([SEARCH, '<think>c</think> <answer>x</answer>'], documents_only, format=0.2) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ('end', 'first', 'expected'),
    [
        ('<think>\n', 'a</think>\n<search>b</search>', True),
        ('<think>', 'a</think>\n<search>b</search>', True),
        ('<think>\n', SEARCH, False),  # opened twice
        ('', 'a</think>\n<search>b</search>', False),
        ('<think>\n\n</think>\n\n', SEARCH, True),  # the template's own thought is closed
    ],
)
def test_a_chat_template_that_opens_think_counts_as_opened(end, first, expected):
    hf = PreTrainedTokenizerFast(
        tokenizer_object=BYTES.hf.backend_tokenizer,
        chat_template='{{ messages[0].content }}<|im_end|>{% if add_generation_prompt %}' + end + '{% endif %}',
        eos_token='<|im_end|>',
    )
    tokenizer = Tokenizer(hf)
    trajectory = play([first, ANSWER, ''], tokenizer=tokenizer)[0]
    reward = Scorer(RewardConfig(format=0.2), tokenizer, 10_000)(trajectory)
    assert reward == pytest.approx(1.2 if expected else 1)
    assert first in ''.join(tokenizer.decode(s.tokens) for s in trajectory.segments)  # what is trained is as sampled


def test_a_document_whose_characters_the_tokenizer_normalizes_is_read_to_its_end():
    hf = byte_tokenizer().hf
    hf.backend_tokenizer.normalizer = normalizers.NFC()  # as Qwen's
    tokenizer, cfg = Tokenizer(hf), RolloutConfig(observation_tokens=400)
    documents = ['Re\u0301union. Its capital is Saint-Denis.', 'Water boils at 373 \u212a.']
    tokens = encode_observation(tokenizer, documents, cfg)
    assert readable(tokenizer, tokens, documents, cfg) == [
        'R\u00e9union. Its capital is Saint-Denis.',
        'Water boils at 373 K.',
    ]


def test_documents_in_the_prompt_are_shown_as_far_as_it_holds_them():
    cfg = dataclasses.replace(CFG, prompt='documents', observation_tokens=20, prompt_tokens=2000, max_turns=0)
    read = {ROME.id: Result(Query(None, ROME, 0, 0, 'x'), ('Rome lies in Italy', 'Paris'))}
    engine = FakeEngine(lambda *_: [*BYTES.encode('<answer>x</answer>'), BYTES.eos_ids[0]])
    (trajectory,) = rollout([ROME], 1, engine, FakeSearch(), BYTES, cfg, identity=(0, 1), prompt_results=read)
    assert trajectory.shown == [['Rome lies in ', '']]


@pytest.mark.parametrize(
    ('documents', 'answer', 'limit', 'held'),
    [
        (('born in New', 'York is old'), 'New York', 400, False),  # not across two
        (('moved', 'to New York.'), 'New York', 400, True),
        (('moved', 'to New York.'), 'New York', 50, False),  # cut before it
        (('in New York at last', 'x'), 'New York', 50, True),  # cut behind it
        (('x' * 40, 'to New York.'), 'New York', 5000, False),  # the whole does not fit, so nothing is shown
        (('it reads Doc 2: x', 'of Oslo'), 'Oslo', 400, True),
        *((('one', 'two'), of_the_frame, 400, False) for of_the_frame in ('2', 'Doc', 'information')),
        ((), 'no results', 400, False),
    ],
)
def test_an_answer_is_found_within_a_document_that_the_policy_can_read(documents, answer, limit, held):
    question = dataclasses.replace(ROME, golden_answers=(answer,))
    cfg = RolloutConfig(response_tokens=len(SEARCH) + 40 + 60 * (limit < 5000), observation_tokens=limit)
    episode = _Episode(Trajectory(question, 0, []), BYTES, cfg)
    episode.act(Stopped('h', tuple(BYTES.encode(SEARCH)), (), '</search>'))
    what, tokens = episode.read(Result(None, documents))
    assert what == 'observe' and episode.observe(tokens) == (limit < 5000)
    assert found_answer(episode.trajectory) == held


def test_an_answer_that_used_up_the_budget_is_looked_at():
    trajectory = play([ANSWER, ''])[0]
    trajectory.segments.pop()  # the token after the answer
    assert actions(trajectory, BYTES) == [ANSWER]


@pytest.mark.parametrize(('length', 'expected'), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (130, -1)])
def test_the_end_of_the_budget_costs(length, expected):
    assert overlong_penalty(length, 100, 20) == pytest.approx(expected)
    assert overlong_penalty(length, 100, 0) == 0


# ---------------------------------------------------------------- alarms


# ---------------------------------------------------------------- the published system's mistakes


def test_d1_a_query_carries_the_question_of_the_trajectory_with_its_number_among_the_searching():
    """Six trajectories of three questions; in the first turn all but the first two search, in the second three."""
    questions, seen = (ROME, PARIS, OSLO), {}

    def script(handle, number, engine):
        place = [q.id for q in questions].index(handle[0]) * 2 + handle[1]
        searches = number < 2 and place > 1 + number
        text = f'<search>{place}.{number}</search>' if searches else '<answer>x</answer>'
        return [*BYTES.encode(text), BYTES.eos_ids[0]]

    for compacted, at_a_time in ((False, None), (True, None), (True, 1), (True, 3)):
        engine, search = FakeEngine(script), FakeSearch(at_a_time=at_a_time)
        source = CompactedQuestions(search, engine, questions, 2) if compacted else search
        found = rollout(questions, 2, engine, source, BYTES, CFG, identity=(0, 1))
        seen[compacted, at_a_time] = {query.text: query.question.id for query in search.queries}
        for trajectory in found:  # results come back to whom they belong
            assert all(s.query.question == trajectory.question for s in trajectory.searches)
            assert all(s.query.sample == trajectory.sample for s in trajectory.searches)
            assert all(s.documents == (f'about {s.query.text}',) for s in trajectory.searches)
    own, *renumbered = seen.values()
    first, second = {'2.0': 'paris', '3.0': 'paris', '4.0': 'oslo', '5.0': 'oslo'}, {'3.1': 'paris', '4.1': 'oslo'}
    assert own == first | second | {'5.1': 'oslo'}
    first, second = {'2.0': 'rome', '3.0': 'rome', '4.0': 'paris', '5.0': 'paris'}, {'3.1': 'rome', '4.1': 'rome'}
    assert renumbered == [first | second | {'5.1': 'paris'}] * 3  # however many the engine answers at a time


def test_d4_no_answer_is_scored_as_the_example_of_the_prompt():
    question = dataclasses.replace(ROME, golden_answers=('Beijing',))
    trajectory = play(['nothing'] * 4, questions=(question,))[0]
    assert trajectory.answer is None
    assert Scorer(RewardConfig(), BYTES, 100)(trajectory) == 0
    assert Scorer(RewardConfig(missing='published'), BYTES, 100)(trajectory) == 1
    assert score([ANSWER], missing='published') == 1  # an answer that was given counts as ever


def test_d5_an_evaluation_samples_at_its_own_temperature():
    for temperature in (0.0, 1.0):
        cfg = dataclasses.replace(EXPERIMENT, evaluation=EvaluationConfig(temperature=temperature))
        loaded, engine = [], FakeEngine(None)
        engine.load = lambda params, temperature, loaded=loaded: loaded.append(temperature)
        engine.unload = lambda loaded=loaded: loaded.append(None)
        trainer = SimpleNamespace(
            cfg=cfg,
            policy_engine=engine,
            learner=SimpleNamespace(policy_params={}),
            search_engine=SimpleNamespace(search=None),
            model=SimpleNamespace(tokenizer=BYTES),
        )
        trainer._rollout = functools.partial(Trainer._rollout, trainer)
        assert Trainer.evaluate(trainer, []) == [] and loaded == [temperature, None]


def test_d6_the_last_incomplete_batch_is_not_evaluated():
    asked = []
    for size in (1, 4):
        evaluation = EvaluationConfig(questions=10, whole_batches_of=size)
        asked.append(load_questions(dataclasses.replace(EXPERIMENT, evaluation=evaluation))[1])
    assert [len(questions) for questions in asked] == [10, 8] and asked[1] == asked[0][:8]
    rows = sources.load_questions(EXPERIMENT.data.test, 'test')  # where all are asked, it is the end of their source
    evaluation = EvaluationConfig(questions=len(rows), whole_batches_of=7)
    asked = load_questions(dataclasses.replace(EXPERIMENT, evaluation=evaluation))[1]
    assert asked == rows[: len(rows) // 7 * 7] != rows


def test_d13_the_first_update_has_rate_zero():
    fixed = state.OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    published = dataclasses.replace(fixed, warmup_from_zero=True)
    assert [float(state.schedule(fixed, 10)(i)) for i in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [float(state.schedule(published, 10)(i)) for i in range(6)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_the_paper_form_differs_from_the_fixed_form_in_every_documented_switch():
    fixed, paper = config.parse(qwen2_5_3b.get_config()), config.parse(qwen2_5_3b.get_config('paper'))
    for section, values in common.PAPER.items():
        for name, value in values.items():
            assert getattr(getattr(paper, section), name) == value != getattr(getattr(fixed, section), name)
    assert np.isclose(paper.rl.kl, -fixed.rl.kl)


@pytest.mark.parametrize('experiment', [qwen2_5_3b, qwen2_5_7b, llama3_2_3b])
def test_every_published_policy_has_its_paper_form(experiment):
    """Base and instructed: two turns, a kept checkpoint every 50 steps, all 3,125 questions, a chat template if any."""
    for words in ('paper', 'paper_instruct'):
        made = config.parse(experiment.get_config(words))
        assert made.policy.model.endswith('-Instruct') == ('instruct' in words)
        assert (made.rollout.max_turns, made.rollout.observation_tokens, made.rollout.prompt_format) == (2, 500, 'chat')
        assert (made.run.keep_every, made.evaluation.questions, made.evaluation.whole_batches_of) == (50, 3125, 64)
        assert made.rl.kl < 0 and made.rl.algorithm == 'reinforce' and made.optimizer.warmup_steps == 192
    fixed = config.parse(experiment.get_config())
    assert (fixed.rollout.max_turns, fixed.rollout.prompt_format) == (5, 'raw')
    assert config.parse(experiment.get_config('instruct')).rollout.prompt_format == 'chat'
    with pytest.raises(KeyError, match='papre'):
        experiment.get_config('papre_instruct')


def test_the_published_prompt_of_a_base_model_is_chatml_or_the_text_alone():
    """With a template its tokens; without one no beginning-of-sequence token, which the raw form has."""
    rollout = dataclasses.replace(config.parse(qwen2_5_3b.get_config('paper')).rollout, prompt_tokens=999)
    question = Question('q', 'Who?', ('a',))
    text = policy_prompt('Who?')
    assert encode_prompt(BYTES, question, rollout) == tuple(BYTES.chat([{'role': 'user', 'content': text}]))
    bare = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=BYTES.hf.backend_tokenizer))
    bare.prefix = (7,)
    assert encode_prompt(bare, question, rollout) == tuple(bare.encode(text))
    raw = dataclasses.replace(rollout, prompt_format='raw')
    assert encode_prompt(bare, question, raw) == (7, *bare.encode(text + '\n'))


def test_the_other_trainings_of_the_paper():
    made = {words: config.parse(qwen2_5_3b.get_config(words)) for words in ('paper', 'paper_ppo', 'ppo', 'r1')}
    for words in ('ppo', 'paper_ppo'):
        rl = made[words].rl
        assert (rl.algorithm, rl.kl, rl.kl_estimator) == ('ppo', 0.001, 'k1')  # its KL has no wrong sign
        assert (made[words].optimizer.warmup_steps, made[words].critic.warmup_steps) == (57, 3)
    assert made['paper_ppo'].critic.over_observations and not made['ppo'].critic.over_observations
    real = config.parse(qwen2_5_7b.get_config('paper_instruct_searchr1'))
    assert (real.simulator.kind, real.simulator.documents, real.rollout.max_turns) == ('engine', 5, 2)
    for words, tokens in (('r1', 3000), ('paper_r1', 1500)):  # of all turns
        alone = config.parse(qwen2_5_3b.get_config(words))
        assert (alone.simulator.kind, alone.rollout.prompt, alone.rollout.max_turns) == ('none', 'reason', 0)
        assert alone.rollout.turn_tokens == tokens <= alone.rollout.response_tokens
