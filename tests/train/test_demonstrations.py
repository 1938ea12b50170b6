"""A demonstration shows what its reader will be shown."""

import dataclasses
import json

import pytest
from scripted import BYTES, ROME
from transformers import PreTrainedTokenizerFast

from zerosearch_jax.data.pairs import Pair, RecordedSearch
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.rewards import actions, well_formed
from zerosearch_jax.rollout.rollout import Trajectory
from zerosearch_jax.search.search import Document
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.writers import completion
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.train.demonstrations import policy_episode, simulator_example

SEARCH = RecordedSearch('s', ROME, 'Rome', (Passage('r', 'Rome', 'is in Italy'),), 'useful')


def templated(template):
    hf = PreTrainedTokenizerFast(
        tokenizer_object=BYTES.hf.backend_tokenizer, chat_template=template, eos_token='<|im_end|>'
    )
    return Tokenizer(hf)


def test_template_arguments_reach_the_demonstrations_of_a_simulator():
    tokenizer = templated('{{ messages[0].content }}{% if enable_thinking is false %}fast{% endif %}')
    prompts = []
    for arguments in ('', '{"enable_thinking": false}'):
        prompt, _ = simulator_example(SEARCH, SimulatorConfig(template_arguments=arguments), tokenizer)
        prompts.append(tokenizer.decode(prompt.tokens))
    assert prompts[1] == prompts[0] + 'fast'


def test_a_simulator_is_taught_after_the_system_message_of_its_wording(tmp_path):
    """As it is asked later; a conversation that was recorded with one of its own keeps that."""
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps({'useful': 'U', 'noisy': 'N', 'system': 'Serve.'}))
    own, turn = {'role': 'system', 'content': 'Own.'}, {'role': 'user', 'content': 'u1'}
    serve, asked = {'role': 'system', 'content': 'Serve.'}, {'role': 'user', 'content': 'a'}
    for history, expected in (
        ((), [serve, asked]),
        ((turn,), [serve, turn, asked]),
        ((own, turn), [own, turn, asked]),
    ):
        item = Pair('p', 'a', 'Doc 1: b', 'useful', history)
        prompt, _ = simulator_example(item, SimulatorConfig(template=str(path)), BYTES)
        assert [*prompt.tokens] == BYTES.chat(expected)
    recorded = RecordedSearch('r', ROME, 'x', (Passage('1', '', 't'),), 'useful')
    prompt, _ = simulator_example(recorded, SimulatorConfig(template=str(path)), BYTES)
    assert [*prompt.tokens] == BYTES.chat([serve, {'role': 'user', 'content': 'U'}])


@pytest.mark.parametrize('opened', ['', '<think>\n'])
def test_what_is_taught_is_right_where_a_template_opens_a_thought(opened):
    """As reasoning models' templates do: documents are not taught inside the thought, nor a second tag of it."""
    tokenizer = templated('{{ messages[0].content }}<|im_end|>{% if add_generation_prompt %}' + opened + '{% endif %}')
    _, taught = simulator_example(SEARCH, SimulatorConfig(), tokenizer)
    read = completion('h', opened + tokenizer.decode(taught.tokens, False).removesuffix('<|im_end|>'))
    assert not read.failure and read.text == 'Doc 1: Rome. is in Italy'
    steps = [{'query': 'Rome', 'passage': 'r', 'need': 'the country', 'answer': 'Italy'}]
    question = dataclasses.replace(ROME, metadata={'decomposition': steps})
    cfg = RolloutConfig(prompt_tokens=2000, turn_tokens=500, response_tokens=3000)
    segments = policy_episode(question, lambda *_: [[Document('Rome', 'is in Italy', 'r')]], tokenizer, cfg, 1)
    assert well_formed(actions(Trajectory(question, 0, segments), tokenizer))
