"""A demonstration shows what its reader will be shown."""

from scripted import BYTES, ROME
from transformers import PreTrainedTokenizerFast

from zerosearch_jax.data.pairs import RecordedSearch
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
