"""A policy is asked in anybody's words, which a file gives: token for token what that file says."""

import dataclasses
import json

import pytest
from scripted import BYTES
from transformers import PreTrainedTokenizerFast

from zerosearch_jax import settings
from zerosearch_jax.data.rows import Question
from zerosearch_jax.evaluate import methods
from zerosearch_jax.rollout import prompts, wording
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.text.tokenizer import CHATML, Tokenizer

ROME = Question('rome', ' Where is {braces} Rome', ('Italy',))
# the published layout in other words: one message, an example of an answer, the question and the end of its line
USER = (
    'Answer it. Reason in <think> and </think> first. Call <search> query </search>; results stand between '
    '<information> and </information>. Or answer in <answer> and </answer>, as <answer> Here </answer>. '
    'Question: {question}\n'
)
ASKED = USER.replace('{question}', 'Where is {braces} Rome?')
# as that of Qwen2.5: without a system message it puts one of its own
QWEN = "{% if messages[0].role != 'system' %}<|im_start|>system\nAs ever.<|im_end|>\n{% endif %}" + CHATML


@pytest.fixture
def asked(tmp_path):
    """Makes the configuration of an episode whose wording is a file with these fields, or this text."""
    made = []

    def make(fields, **options):
        made.append(tmp_path / f'mine_{len(made)}.json')
        made[-1].write_text(fields if isinstance(fields, str) else json.dumps(fields))
        return RolloutConfig(prompt=str(made[-1]), prompt_tokens=999, **options)

    return make


@pytest.mark.parametrize(
    ('fields', 'system'),
    [({}, 'As ever.'), ({'system': None}, 'As ever.'), ({'system': ''}, ''), ({'system': 'Search.'}, 'Search.')],
    ids=['absent', 'none', 'empty', 'text'],
)
def test_a_prompt_in_the_published_layout_has_the_same_tokens(asked, fields, system):
    hf = PreTrainedTokenizerFast(tokenizer_object=BYTES.hf.backend_tokenizer, chat_template=QWEN)
    made = prompts.encode_prompt(Tokenizer(hf), ROME, asked({'user': USER, **fields}))
    turns = [('system', system), ('user', ASKED), ('assistant', '')]
    start, end = hf.convert_tokens_to_ids(['<|im_start|>', '<|im_end|>'])
    expected = []  # what is not the template's is plain text: <think> in it is letters, not the added token
    for role, text in turns:
        expected += [start, *BYTES.encode(f'{role}\n{text}'), end, *BYTES.encode('\n')]
    assert [*made] == expected[:-2]


def test_a_raw_prompt_is_the_text_of_the_file_and_one_end_of_its_line(asked):
    for user, system, text in ((USER, None, ASKED), (USER.rstrip(), '', ASKED), (USER, 'Hi.', f'Hi.\n{ASKED}')):
        cfg = asked({'user': user, 'system': system}, prompt_format='raw')
        assert prompts.encode_prompt(BYTES, ROME, cfg) == tuple(BYTES.encode(text))


def test_a_model_without_a_template_is_shown_no_empty_line(asked):
    bare = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=BYTES.hf.backend_tokenizer))
    assert prompts.encode_prompt(bare, ROME, asked({'user': USER, 'system': ''})) == tuple(BYTES.encode(ASKED))


def test_a_template_that_drops_the_system_message_is_refused(asked):
    deaf = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=BYTES.hf.backend_tokenizer, chat_template=deaf))
    assert prompts.encode_prompt(tokenizer, ROME, asked({'user': USER, 'system': ''}))
    with pytest.raises(ValueError, match='the chat template drops what the system says'):
        prompts.encode_prompt(tokenizer, ROME, asked({'user': USER, 'system': 'You search.'}))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"user": "{que', r'mine_0\.json is not JSON'),
        ('[]', r'mine_0\.json must hold a JSON object, not a list'),
        ('{"user": "why?"}', r"mine_0\.json: .*: the text 'user' must contain \{question\}"),
        ('{"user": "{question} {query}"}', r'mine_0\.json: .*placeholder \{query\} is unknown'),
        ('{"user": "{question} {documents}"}', r"mine_0\.json: \{documents\} belongs in the wording 'documents' only"),
        ('{"user": ["{question}"]}', r'mine_0\.json: config\.rollout\.prompt\.user must be str, got'),
        ('{"user": "{question}", "system": 1}', r'mine_0\.json: config\.rollout\.prompt\.system must be str \| None'),
        ('{"users": "{question}"}', r"mine_0\.json: config\.rollout\.prompt has no field 'users'; did you mean 'user'"),
        ('{}', r'mine_0\.json: config\.rollout\.prompt\.user is missing'),
    ],
)
def test_a_wrong_file_is_one_clear_line(asked, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        asked(text)
    assert '\n' not in str(caught.value)


def test_a_misspelt_wording_is_told_with_those_there_are():
    with pytest.raises(
        OSError, match=r"config.rollout.prompt = 'serach' is no file, and none of 'search', 'budget', 'reason', "
    ):
        settings.section(RolloutConfig, {'prompt': 'serach'}, 'config.rollout')


def test_methods_ask_in_the_words_of_the_file_where_it_is_for_them(asked):
    """A file is for what searches, or without turns for what does not."""
    for turns, own in ((3, {'agent', 'search_o1', 'search_r1', 'zerosearch'}), (0, {'cot', 'r1'})):
        cfg = asked({'user': USER}, max_turns=turns)
        made = {name: methods.episode_config(method, cfg) for name, method in methods.METHODS.items()}
        assert {name for name, size in made.items() if size.prompt == cfg.prompt} == own
        assert made['direct'].prompt == 'direct' and made['rag'].prompt == 'documents'
        by_file = methods.episode_config(methods.Method(cfg.prompt), cfg)  # as launch.ask names it
        assert (by_file.prompt, by_file.max_turns) == (cfg.prompt, turns)
    ours = dataclasses.replace(cfg, prompt='search', max_turns=3)
    assert {methods.episode_config(m, ours).prompt for m in methods.METHODS.values()} == methods.OF_METHODS
    assert {*wording.POLICY_PROMPTS} - methods.OF_METHODS == {'budget'}


def test_the_budget_is_in_the_prompt_of_what_searches_if_the_wording_says_so():
    cfg = RolloutConfig(prompt='budget', max_turns=3, prompt_tokens=999)
    usual = dataclasses.replace(cfg, prompt='search')
    texts = [BYTES.decode(prompts.encode_prompt(BYTES, ROME, each)) for each in (cfg, usual)]
    assert texts[0] == texts[1].replace('as you need.', 'as you need, at most 3 times.') != texts[1]
    sizes = {name: methods.episode_config(method, cfg).prompt for name, method in methods.METHODS.items()}
    assert {name for name, prompt in sizes.items() if prompt == 'budget'} == {
        *('agent', 'search_o1', 'search_r1', 'zerosearch')
    }
