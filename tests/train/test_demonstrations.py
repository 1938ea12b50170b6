"""A demonstration shows what its reader will be shown."""

import json

from scripted import BYTES, ROME
from transformers import PreTrainedTokenizerFast

from zerosearch_jax.data.pairs import Pair, RecordedSearch
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.train.demonstrations import simulator_example


def test_template_arguments_reach_the_demonstrations_of_a_simulator():
    template = '{{ messages[0].content }}{% if enable_thinking is false %}fast{% endif %}'
    tokenizer = Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=BYTES.hf.backend_tokenizer, chat_template=template, eos_token='<|im_end|>'
        )
    )
    item = RecordedSearch('s', ROME, 'Rome', (Passage('r', 'Rome', 'is in Italy'),), 'useful')
    prompts = []
    for arguments in ('', '{"enable_thinking": false}'):
        prompt, _ = simulator_example(item, SimulatorConfig(template_arguments=arguments), tokenizer)
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
