"""Variants of the simulator: wording, noise by document, memory, oracle, and weights of eight bits."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, drain, requests, tiny_engine, tiny_params
from scripted import BYTES, EOS, FakeEngine
from servers import Server
from transformers import PreTrainedTokenizerFast

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.data.rows import Passage, Question
from zerosearch_jax.generate import serving
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.models import layers, lora, quant
from zerosearch_jax.policy import PolicyConfig, make_trainable
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.search import Document, Query
from zerosearch_jax.simulator import load, prompts
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.load import open_simulator, open_writer
from zerosearch_jax.simulator.oracle import Oracle, gold_ids, oracle_search
from zerosearch_jax.simulator.simulator import SimulatedSearch, draw_labels
from zerosearch_jax.simulator.writers import Completion, EndpointConfig, EndpointWriter, EngineWriter, completion
from zerosearch_jax.text.tokenizer import CHATML, Tokenizer

ROME = Question('rome', 'Where is Rome', ('Italy',))


class Scripted:
    """Answers every message by `script(handle, message)`, a text or Completion."""

    def __init__(self, script):
        self.asked, self._script, self._queue = [], script, []

    def ask(self, handle, message, identity, system=None):
        self.asked.append((handle, message, identity))
        self._queue.append((handle, message))

    @property
    def active(self):
        return len(self._queue)

    def step(self):
        handle, message = self._queue.pop()  # the last first: arrival order must not matter
        answer = self._script(handle, message)
        return [answer if isinstance(answer, Completion) else Completion(handle, answer)]


def run(script, cfg, queries=None, noise=0.5, step=1, memory=None, failures=None):
    writer = Scripted(script)
    search = SimulatedSearch(writer, cfg, seed=0, step=step, noise=noise, memory=memory, failures=failures or memory)
    for query in queries or [Query('h', ROME, 0, 0, 'city')]:
        search.submit(query)
    results = []
    while search.active:
        results += search.step()
    return {r.query.handle: r for r in results}, writer


def counted(handle, message):
    """As many documents as were asked for, named after their quality."""
    quality = 'noisy' if message.endswith('Noisy documents:') else 'useful'
    count = next(n for n in range(1, 9) if f'Write {n} {quality} ' in message)
    return '\n'.join(f'Doc {i}: {quality} {i}' for i in range(1, count + 1))


QUERIES = [Query(i, Question(f'q{i}', 'x', ('y',)), 0, 0, 'z') for i in range(200)]


def test_noise_by_document_mixes_both_in_the_order_drawn():
    cfg = SimulatorConfig(template='tuned', noise_per='document', documents=4)
    results, writer = run(counted, cfg, QUERIES, noise=0.3)
    assert len({r.labels for r in results.values()}) > 8
    for result in results.values():
        assert [d.split()[0] == 'noisy' for d in result.documents] == list(result.labels)
        for quality in ('useful', 'noisy'):
            mine = [d for d in result.documents if d.startswith(quality)]
            assert mine == [f'{quality} {i + 1}' for i in range(len(mine))]
        assert result.noisy == any(result.labels)
    assert np.mean([r.labels for r in results.values()]) == pytest.approx(0.3, abs=0.06)
    assert len(writer.asked) == sum(len(set(r.labels)) for r in results.values())
    assert len({identity for _, _, identity in writer.asked}) == len(writer.asked)


def test_noise_by_search_is_one_label_for_all():
    for query in QUERIES[:40]:
        assert len(set(draw_labels(query, SimulatorConfig(documents=4), (0, 1), 0.5))) == 1


def test_a_failing_half_fails_the_search_after_its_own_attempts():
    cfg = SimulatorConfig(noise_per='document', documents=2, attempts=2)
    query = next(q for q in QUERIES if set(draw_labels(q, cfg, (0, 1), 0.5)) == {False, True})
    results, writer = run(lambda h, m: 'nothing' if h[1] else 'Doc 1: fine', cfg, [query])
    (result,) = results.values()
    assert (result.failure, result.documents, result.attempts) == ('count', (), 2)
    assert [handle for handle, _, _ in writer.asked] == [(query.handle, n, a) for n, a in ((0, 1), (1, 1), (1, 2))]


def test_what_the_outside_fails_is_not_asked_for_again():
    results, writer = run(lambda handle, message: Completion(handle, failure='timeout'), SimulatorConfig(attempts=3))
    assert results['h'].failure == 'timeout'
    assert len(writer.asked) == 1


def test_a_remembered_search_is_answered_once_per_query_question_quality_and_seed(tmp_path):
    cfg = SimulatorConfig(template='tuned', remember=str(tmp_path / 'memory.log'))
    first, writer = run(counted, cfg, memory=Journal(cfg.remember), noise=0.0)
    assert len(writer.asked) == 1
    again, writer = run(
        lambda *_: 'changed', cfg, memory=Journal(cfg.remember), noise=0.0, step=7
    )  # read from the file
    assert again['h'].documents == first['h'].documents
    assert not writer.asked
    for change in (
        {'noise': 1.0},
        {'queries': [Query('h', ROME, 0, 0, 'town')]},
        {'queries': [Query('h', dataclasses.replace(ROME, question='Where was Rome'), 0, 0, 'city')]},
    ):
        _, writer = run(counted, cfg, memory=Journal(cfg.remember), **{'noise': 0.0} | change)
        assert len(writer.asked) == 1
    _, writer = run(counted, dataclasses.replace(cfg, words=31), memory=Journal(cfg.remember), noise=0.0)
    assert len(writer.asked) == 1
    for change in ({'style': 'snippets'}, {'temperature': 0.1}, {'max_tokens': 99}, {'model': 'other'}):
        _, writer = run(counted, dataclasses.replace(cfg, **change), memory=Journal(cfg.remember), noise=0.0)
        assert len(writer.asked) == 1, change
    for same in ({'slots': 3}, {'cache_gib': 1.0}, {'attempts': 9}, {'remember': f'{cfg.remember}/../memory.log'}):
        _, writer = run(counted, dataclasses.replace(cfg, **same), memory=Journal(cfg.remember), noise=0.0)
        assert not writer.asked, same


@pytest.mark.parametrize('changed', ['golden answer', 'template file', 'adapter of the same name'])
def test_remember_knows_all_that_a_text_depends_on(changed, tmp_path, monkeypatch):
    """The old documents are not given where one of these changed, though its name did not."""
    template, adapter, writers = tmp_path / 'mine.json', tmp_path / 'mine.safetensors', []

    def texts(useful='{knowledge}{query}', weights=b'a'):
        template.write_text(json.dumps({'useful': useful, 'noisy': 'N', 'knowledge': '{answer} '}))
        adapter.write_bytes(weights)

    def open_writer(*_, **__):
        writers.append(Scripted(lambda handle, message: 'Doc 1: a'))
        return writers[-1]

    monkeypatch.setattr(load, 'open_writer', open_writer)
    cfg = SimulatorConfig(documents=1, template=str(template), adapter=str(adapter), remember=str(tmp_path / 'memory'))

    def asked(question=ROME):
        opened = {'mesh': sharding.make_mesh(), 'decode_steps': 1, 'slots': 4, 'corpus': None, 'search_engine': None}
        search = open_simulator(cfg, EndpointConfig(), **opened).source(seed=0, step=1, noise=0.0)
        search.submit(Query('h', question, 0, 0, 'city'))
        while search.active:
            search.step()
        return len(writers[-1].asked)

    texts()
    assert (asked(), asked()) == (1, 0)
    prompts.simulator_template.cache_clear()  # another run
    if changed == 'golden answer':
        assert asked(dataclasses.replace(ROME, golden_answers=('Lazio',))) == 1
        return
    texts(
        **{'template file': {'useful': '{query} {knowledge}'}, 'adapter of the same name': {'weights': b'b'}}[changed]
    )
    assert (asked(), asked()) == (1, 0)


@pytest.mark.parametrize('written', ['Doc 1: a', 'nothing', Completion('x', failure='timeout', detail='no reply')])
def test_a_replayed_run_with_a_memory_counts_what_the_first_counted(written, tmp_path):
    cfg = SimulatorConfig(documents=1, attempts=3, remember=str(tmp_path / 'memory'))

    def script(handle, message):
        if isinstance(written, Completion):
            return dataclasses.replace(written, handle=handle)
        return written if handle[2] == 3 else 'not yet'

    def played(script, step=1, sample=0, memory=cfg.remember, name='a'):
        query = Query('h', ROME, sample, 0, 'city')
        log = Journal(tmp_path / name)
        results, writer = run(script, cfg, [query], noise=0.0, step=step, memory=Journal(memory), failures=log)
        log.commit()
        return results['h'], len(writer.asked)

    first, _ = played(script)
    assert first.attempts == (1 if isinstance(written, Completion) else 3)
    assert played(lambda *_: 'Doc 1: other') == (first, 0)
    # documents are those of every run, step and sample, a failure is of its search alone
    expected = ('other',) if first.failure else first.documents
    for where in ({'step': 2}, {'sample': 1}, {'name': 'b'}):
        assert played(lambda *_: 'Doc 1: other', **where)[0].documents == expected, where


def test_a_failure_that_is_of_no_run_is_not_remembered(tmp_path):
    for _ in range(2):
        log = Journal(tmp_path / 'memory')
        _, writer = run(lambda *_: 'x', SimulatorConfig(attempts=1), memory=log, step=0)
        log.commit()
        assert writer.asked


# ---------------------------------------------------------------- what is verified

TRUE, UNTRUE = {False: 'In Italy', True: 'On a river'}, {False: 'On a river', True: 'In Italy'}  # by noisy, of ROME
BOTH = pytest.mark.parametrize('noisy', [False, True], ids=['useful', 'noisy'])
VERIFIED = SimulatorConfig(documents=2, attempts=3, verify=True)


def two(first, second='Elsewhere'):
    return f'Doc 1: {first}\nDoc 2: {second}'


def verified(outputs, noisy, cfg=VERIFIED, **options):
    """The result of a search whose attempts are written in order, and what was asked."""
    results, writer = run(lambda handle, _: outputs[handle[2] - 1], cfg, noise=float(noisy), **options)
    return results['h'], writer.asked


@BOTH
def test_documents_that_belie_their_label_are_written_again_within_the_attempts(noisy):
    result, asked = verified([two(UNTRUE[noisy]), 'no documents', two('Elsewhere', TRUE[noisy])], noisy)
    assert (result.documents[1], result.failure, result.attempts) == (TRUE[noisy], '', 3)
    assert result.mislabelled is False
    assert len({identity for *_, identity in asked}) == 3 and len({message for _, message, _ in asked}) == 1
    result, asked = verified([two(TRUE[noisy])], noisy)
    assert (result.attempts, result.mislabelled, len(asked)) == (1, False, 1)


@BOTH
@pytest.mark.parametrize('last', ['valid', 'malformed'])
def test_documents_that_belie_their_label_to_the_end_are_used_and_counted(noisy, last):
    texts = [f'{UNTRUE[noisy]} {i}' for i in range(3)]
    outputs = [*map(two, texts)]
    if last == 'malformed':
        outputs[2] = 'no documents'
    result, asked = verified(outputs, noisy)
    assert (result.failure, result.attempts, result.mislabelled, len(asked)) == ('', 3, True, 3)
    assert result.documents[0] == texts[2 if last == 'valid' else 1]  # the last ones that could be read


@BOTH
def test_without_verification_nothing_is_written_again_but_all_is_counted(noisy):
    cfg = dataclasses.replace(VERIFIED, verify=False)
    for text, mislabelled in ((TRUE[noisy], False), (UNTRUE[noisy], True)):
        result, asked = verified([two(text)], noisy, cfg)
        assert (result.documents[0], result.attempts, result.mislabelled) == (text, 1, mislabelled)
    assert asked == verified([two(text)] * 3, noisy)[1][:1]  # the first attempt is the same


@pytest.mark.parametrize('wrong', [None, False, True])
def test_with_noise_by_document_each_quality_is_checked_by_its_own_documents(wrong):
    cfg = dataclasses.replace(VERIFIED, noise_per='document')
    query = next(
        query
        for query in (Query(i, dataclasses.replace(ROME, id=f'{i}'), 0, 0, 'city') for i in range(50))
        if len(set(draw_labels(query, cfg, (0, 1), 0.5))) == 2
    )

    def script(handle, message):
        _, noisy, attempt = handle
        return f'Doc 1: {(UNTRUE if noisy == wrong and attempt < 3 else TRUE)[noisy]}'

    results, writer = run(script, cfg, [query])
    assert [results[query.handle].mislabelled, len(writer.asked)] == [False, 2 if wrong is None else 4]
    results, _ = run(lambda handle, _: f'Doc 1: {(UNTRUE if handle[1] == wrong else TRUE)[handle[1]]}', cfg, [query])
    assert results[query.handle].mislabelled == (wrong is not None)


@pytest.mark.parametrize(
    ('golds', 'text', 'noisy', 'mislabelled'),
    [
        (('Italy',), 'Is it Italy or Spain', True, None),
        (('Italy', 'Italia'), 'Is it Italy or Spain', True, False),
        (('Italy',), 'Is it Italy or Spain', False, True),
        (('yes',), 'city', False, None),
        (('no', 'Italy'), 'city', True, None),
        ((), 'city', False, None),
    ],
)
def test_what_cannot_be_checked_is_not_written_again(golds, text, noisy, mislabelled):
    query = Query('h', dataclasses.replace(ROME, golden_answers=golds), 0, 0, text)
    result, asked = verified([two('In Italy' if noisy else 'On a river')] * 3, noisy, queries=[query])
    assert (result.failure, result.mislabelled, len(asked)) == ('', mislabelled, 3 if mislabelled else 1)


def test_what_the_outside_fails_fails_the_search_though_documents_were_written_before():
    result, asked = verified([two('On a river'), Completion(('h', False, 2), failure='timeout')], noisy=False)
    assert (result.failure, result.documents, result.mislabelled, len(asked)) == ('timeout', (), None, 2)


def test_a_failed_search_is_neither_labelled_nor_mislabelled():
    result, _ = verified(['no documents'] * 3, noisy=True)
    assert (result.failure, result.mislabelled, result.attempts) == ('count', None, 3)


@BOTH
def test_verified_documents_are_remembered_apart_and_counted_again(noisy, tmp_path):
    outputs = [two(UNTRUE[noisy])] * 3

    def played(**changes):
        cfg = dataclasses.replace(VERIFIED, **changes)
        return verified(outputs, noisy, cfg, memory=Journal(tmp_path / 'memory'))

    plain, asked = played(verify=False)
    assert len(asked) == 1
    first, asked = played()
    assert (first.mislabelled, first.attempts, len(asked)) == (True, 3, 3)
    assert played() == (first, []) and played(verify=False) == (plain, [])
    assert len(played(attempts=2)[1]) == 2  # more attempts may find better ones, fewer would have found others
    other = Query('h', dataclasses.replace(ROME, golden_answers=('Italy', 'Italia')), 0, 0, 'city')
    assert verified(outputs, noisy, queries=[other], memory=Journal(tmp_path / 'memory'))[1]


def test_verification_of_a_served_simulator_is_replayed_from_its_log(tmp_path):
    replies = [two('On a river'), two('In Italy')]
    server = Server(lambda _: json.dumps({'choices': [{'message': {'content': replies.pop(0)}}]}))
    found = []
    for _ in range(2):
        log = Journal(tmp_path / 'calls.log')
        writer = EndpointWriter(EndpointConfig(server.url, retries=0), 'm', max_tokens=50, temperature=0.0, log=log)
        search = SimulatedSearch(writer, VERIFIED, seed=0, step=1, noise=0.0)
        search.submit(Query('h', ROME, 0, 0, 'city'))
        while search.active:
            found += search.step()
    assert found[0] == found[1] and len(server.requests) == 2
    assert (found[0].documents, found[0].attempts) == (('In Italy', 'Elsewhere'), 2)


def test_with_tell_hop_the_hops_answer_is_checked_and_noise_holds_neither():
    hops = [{'question': 'country of Rome', 'answer': 'Italy'}, {'question': '#1 >> currency', 'answer': 'Euro'}]
    question = Question('q', 'What is paid with in Rome?', ('Euro',), metadata={'decomposition': hops})
    query = [Query('h', question, 0, 0, 'Rome country')]
    for tell, useful in (('final', 'Euro'), ('hop', 'Italy'), ('none', 'Euro')):
        cfg = dataclasses.replace(VERIFIED, tell=tell)
        for text in ('Italy', 'Euro'):
            assert verified([two(text)] * 3, False, cfg, queries=query)[0].mislabelled == (text != useful)
            expected = tell == 'hop' or text == 'Euro'
            assert verified([two(text)] * 3, True, cfg, queries=query)[0].mislabelled == expected


# ---------------------------------------------------------------- what is read


def test_4301_digits_after_doc_are_a_count_failure_and_on_replay_from_calls_log_too(tmp_path):
    text = 'Doc 1: a\nDoc ' + '9' * 4301 + ': b'
    assert prompts.parse_documents(text, 2, 30) == ((), 'count')
    assert prompts.parse_documents('Doc 1: a\nDoc 002: b', 2, 30) == (('a', 'b'), '')
    server = Server(lambda _: json.dumps({'choices': [{'message': {'content': text}}]}))
    for _ in range(2):
        log = Journal(tmp_path / 'calls.log')
        endpoint = EndpointConfig(server.url, retries=0)
        writer = EndpointWriter(endpoint, 'm', max_tokens=5, temperature=0.0, log=log, keep_failures=True)
        search = SimulatedSearch(writer, SimulatorConfig(documents=2, attempts=2), seed=0, step=1, noise=0.0)
        search.submit(Query('h', ROME, 0, 0, 'city'))
        results = []
        while search.active:
            results += search.step()
        assert [(result.failure, result.attempts) for result in results] == [('count', 2)]
    assert len(server.requests) == 2


THOUGHTS = '<think>draft\nDoc 1: draft</think>\n'


@pytest.mark.parametrize('thinking', [THOUGHTS, f'{THOUGHTS}<think>again </think>', 'opened by the prompt</think>'])
def test_a_simulators_thoughts_are_no_documents(thinking):
    results, _ = run(lambda handle, _: completion(handle, f'{thinking}Doc 1: real'), SimulatorConfig(documents=1))
    assert results['h'].documents == ('real',)


def test_thoughts_without_an_end_and_empty_content_are_failures_that_are_asked_again():
    assert completion(0, 'Sure.\n<think>\nDoc 1: draft').text == 'Sure.'
    for text, said in (('<think>Doc 1: draft', 'nothing but thoughts'), ('', 'nothing')):
        replies = [text, 'Doc 1: real']
        cfg = SimulatorConfig(documents=1, attempts=2)
        results, _ = run(lambda handle, _, replies=replies: completion(handle, replies.pop(0)), cfg)
        assert (results['h'].documents, results['h'].attempts) == (('real',), 2)
        results, _ = run(lambda handle, _, text=text: completion(handle, text), cfg)
        assert (results['h'].failure, results['h'].detail, results['h'].attempts) == ('empty', said, 2)


@pytest.mark.parametrize(('end', 'text'), [('<think>\n', ''), ('', 'Doc 1: a draft document')])
def test_a_draft_in_a_thought_that_the_template_opened_is_no_document(end, text):
    hf = PreTrainedTokenizerFast(
        tokenizer_object=BYTES.hf.backend_tokenizer,
        chat_template='{{ messages[0].content }}{% if add_generation_prompt %}' + end + '{% endif %}',
        eos_token='<|im_end|>',
    )
    tokenizer = Tokenizer(hf)
    engine = FakeEngine(lambda *_: [*tokenizer.encode('Doc 1: a draft document'), EOS], tokenizer, stops=())
    writer = EngineWriter(engine, tokenizer, prompt_tokens=1000, max_tokens=100)
    writer.ask('h', 'city', (0,))
    (written,) = writer.step()
    assert (written.text, written.failure) == (text, '' if text else 'empty')


def test_what_a_served_simulator_said_goes_with_the_failure():
    said = 'The model `m` does not exist.'
    results, _ = run(lambda handle, _: Completion(handle, '', 'status_404', said), SimulatorConfig())
    assert (results['h'].failure, results['h'].detail) == ('status_404', said)
    results, _ = run(lambda *_: "I can't help with that.", SimulatorConfig())
    assert (results['h'].failure, results['h'].detail) == ('count', "I can't help with that.")


# ---------------------------------------------------------------- wording


def message(template, noisy, **options):
    query = Query('h', Question('who', 'Who?', ('Ann', 'A.')), 0, 0, 'the query')
    return prompts.request(query, SimulatorConfig(**options), template, noisy, 3)


@pytest.mark.parametrize('name', prompts.SIMULATOR_TEMPLATES)
def test_a_request_carries_all_that_it_should(name):
    template = prompts.simulator_template(name)
    for noisy in (False, True):
        text = message(template, noisy)
        for part in ('Who?', 'Ann', 'the query', '3 ', '30 words'):
            assert part in text
        assert 'A.' not in text.replace('Ann', '')
        assert text.endswith('Noisy documents:' if noisy else 'Useful documents:')
        assert 'encyclopedia passages' in message(template, noisy, style='encyclopedia passages')
    assert message(template, False) != message(template, True)


def test_a_request_tells_the_answer_that_tell_names():
    hops = [{'query': 'mother of Bo', 'answer': 'Cy'}, {'query': 'home of Cy', 'answer': 'Ann'}]
    question = Question('who', 'Who?', ('Ann', 'A.'), metadata={'decomposition': hops})
    knowledge = 'Q {question}\nA {answer}.\n'
    for template, before in (('{knowledge}{query}', knowledge), ('{query}', 'no {answer} {question}')):
        made = prompts.SimulatorTemplate(template, template, before)
        told = [
            prompts.request(Query('h', question, 0, 0, 'Bo'), SimulatorConfig(tell=tell), made, noisy, 3)
            for tell in ('final', 'hop', 'none')
            for noisy in (False, True)
        ]
        expected = ['Q Who?\nA Ann.\n', 'Q Who?\nA Cy.\n', 'Q Who?\n']
        assert told == [f'{text}Bo' if before == knowledge else 'Bo' for text in expected for _ in range(2)]
    made = prompts.SimulatorTemplate('{knowledge}', '', 'A: {answer} Q: {question} Go.')
    assert (
        prompts.request(Query('h', question, 0, 0, 'Bo'), SimulatorConfig(tell='none'), made, False, 3) == 'A:  Q: Who?'
    )
    for name in prompts.SIMULATOR_TEMPLATES:
        text = message(prompts.simulator_template(name), False, tell='none')
        assert 'Who?' in text and 'Ann' not in text and '{' not in text


def test_a_blind_request_for_noise_tells_neither_question_nor_answer():
    template = prompts.simulator_template('tuned')
    assert 'Who?' not in message(template, True, blind_noise=True) and 'Ann' not in message(
        template, True, blind_noise=True
    )
    assert message(template, False, blind_noise=True) == message(template, False)


@pytest.mark.parametrize(
    'text', ['', '{"useful": "U', '<html>', '[]', '[' * 100_000], ids=['empty', 'cut', 'html', 'list', 'nested']
)
def test_a_template_file_that_is_empty_cut_html_or_a_list_is_named(tmp_path, text):
    path = tmp_path / 'template.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'^\S*template\.json (is not JSON|must hold a JSON object)'):
        prompts.simulator_template(str(path))


def test_a_template_from_a_file(tmp_path):
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps({'useful': 'U {knowledge}{query}', 'noisy': 'N {query} {braces}'}))
    with pytest.raises(ValueError, match=r'mine.json: .*\{braces\} is unknown'):
        prompts.simulator_template(str(path))
    path.write_text(json.dumps({'useful': 'U {knowledge}{query}', 'noisy': 'N', 'knowledge': '{question}={answer} '}))
    assert message(prompts.simulator_template(str(path)), False) == 'U Who?=Ann the query'
    path.write_text('{"useful": "x"}')  # a run has read it, and asks on in the same way
    assert message(prompts.simulator_template(str(path)), False) == 'U Who?=Ann the query'
    prompts.simulator_template.cache_clear()
    with pytest.raises(ValueError, match=r'mine.json: config.simulator.template.noisy is missing'):
        prompts.simulator_template(str(path))
    path.write_text('{"useful": "x", "noisy": "y", "system": 3}')
    with pytest.raises(ValueError, match=r'mine.json: config.simulator.template.system must be str \| None, got 3'):
        prompts.simulator_template(str(path))
    with pytest.raises(FileNotFoundError, match="'tuned', 'told', 'prompted'"):
        prompts.simulator_template('tuend')


CHAT = (  # as that of Qwen2.5: without a system message it puts one of its own
    "{% if messages[0].role != 'system' %}<|im_start|>system\nAs ever.<|im_end|>\n{% endif %}" + CHATML
)


@pytest.mark.parametrize('system', [None, '', 'You serve.'])
def test_a_request_in_the_published_layout_has_the_same_tokens(tmp_path, monkeypatch, system):
    """A system message without text, and a user's whose last line names the quality of the output."""
    fields = {
        'useful': 'You are a search engine.\n{knowledge}About {words} words, useful.\nQuery: {query}\nUseful Output:',
        'noisy': 'You are a search engine.\n{knowledge}About {words} words, noisy.\nQuery: {query}\nNoisy Output:',
        'knowledge': 'The user asks "{question}", whose answer is {answer}.\n',
    }
    path = tmp_path / 'published.json'
    path.write_text(json.dumps(fields | ({} if system is None else {'system': system})))
    hf = PreTrainedTokenizerFast(tokenizer_object=BYTES.hf.backend_tokenizer, chat_template=CHAT)
    opened, sent = [], []
    engine = types.SimpleNamespace(open=lambda request: opened.append(request.prompt))
    writer = EngineWriter(engine, Tokenizer(hf), prompt_tokens=999, max_tokens=1)
    request = (
        'You are a search engine.\nThe user asks "Where is Rome", whose answer is Italy.\nAbout 30 words, useful.\n'
    )
    said = [] if system is None else [{'role': 'system', 'content': system}]
    said.append({'role': 'user', 'content': f'{request}Query: city\nUseful Output:'})
    cfg = SimulatorConfig(template=str(path))
    SimulatedSearch(writer, cfg, seed=0, step=1, noise=0.0).submit(Query('h', ROME, 0, 0, 'city'))
    rendered = ''.join(f'<|im_start|>{m["role"]}\n{m["content"]}<|im_end|>\n' for m in said)
    rendered = ('<|im_start|>system\nAs ever.<|im_end|>\n' if system is None else '') + rendered
    assert [*opened[0]] == hf(rendered + '<|im_start|>assistant\n', add_special_tokens=False).input_ids
    monkeypatch.setattr(EndpointConfig, 'ask', lambda self, path, body: sent.append(body['messages']))
    served = EndpointWriter(EndpointConfig(url='http://h/v1'), 'm', max_tokens=1, temperature=1, log=Journal(None))
    SimulatedSearch(served, cfg, seed=0, step=1, noise=0.0).submit(Query('h', ROME, 0, 0, 'city'))
    served.step()
    assert sent == [said]


def test_what_is_remembered_is_of_a_system_message_too(tmp_path):
    memory, asked = Journal(None), []
    for i, system in enumerate((None, '', 'S')):
        fields = {'useful': 'U', 'noisy': 'N', 'system': system}
        (tmp_path / f'{i}.json').write_text(json.dumps(fields))
        cfg = SimulatorConfig(template=str(tmp_path / f'{i}.json'), documents=1)
        for _ in range(2):
            run(lambda handle, message, i=i: asked.append(i) or 'Doc 1: a', cfg, noise=0.0, memory=memory)
    assert asked == [0, 1, 2]


# ---------------------------------------------------------------- oracle

PASSAGES = [
    Passage('rome', 'Rome', 'Rome is the capital of Italy.'),
    Passage('tiber', 'Tiber', 'The river Tiber flows through Rome.'),
    Passage('italy', 'Italy', 'Italy is a country whose capital is Rome.'),
    Passage('oslo', 'Oslo', 'Oslo is in Norway, far from Rome.'),
    Passage('paris', 'Paris', 'Paris and Rome are capitals.'),
]


def ask_oracle(question, labels):
    search = oracle_search(Oracle(BM25(PASSAGES).search, PASSAGES), lambda query: labels)
    search.submit(Query('h', question, 0, 0, 'Rome capital'))
    (result,) = search.step()
    return [d.split('.')[0] for d in result.documents], result


def test_the_oracle_gives_named_passages_or_none_of_them():
    named = dataclasses.replace(ROME, metadata={'supporting_ids': ['italy']})
    useful, result = ask_oracle(named, (False, False))
    assert useful[0] == 'Italy' and len(useful) == 2 and 'Rome' not in useful  # Rome holds the answer: no filler
    assert not result.noisy
    noisy, result = ask_oracle(named, (True, True, True))
    assert not {'Italy', 'Rome'} & set(noisy) and len(noisy) == 3
    assert result.noisy


def test_names_of_another_corpus_are_no_names():
    for metadata in ({'supporting_ids': [7, 'pid-1']}, {'decomposition': ['first?', 'second?']}):
        elsewhere = dataclasses.replace(ROME, metadata=metadata)
        assert ask_oracle(elsewhere, (False, False))[0] == ask_oracle(ROME, (False, False))[0]


def test_without_names_an_answer_makes_a_passage_gold():
    useful, _ = ask_oracle(ROME, (False, False))
    assert sorted(useful) == ['Italy', 'Rome']
    mixed, _ = ask_oracle(ROME, (True, False, True))
    assert mixed[1] in ('Italy', 'Rome')
    assert not {'Italy', 'Rome'} & {mixed[0], mixed[2]} and len(set(mixed)) == 3


def test_yes_or_no_makes_no_passage_gold():
    asked = dataclasses.replace(ROME, golden_answers=('a',), metadata={})
    passages = [Passage('a', 'No', 'No rain.'), Passage('b', 'Rome', 'Rome is a capital.')]
    search = oracle_search(Oracle(BM25(passages).search, passages), lambda query: (False,))
    search.submit(Query('h', dataclasses.replace(asked, golden_answers=('no',)), 0, 0, 'Rome capital no'))
    (result,) = search.step()
    assert result.documents == (BM25(passages).search(['Rome capital no'], 1)[0][0].as_text,)


def test_a_real_engine_in_the_place_of_the_simulator_knows_no_noise(mesh):
    cfg = SimulatorConfig(kind='engine', documents=2)
    made = open_simulator(
        cfg, EndpointConfig(), mesh=mesh, decode_steps=4, slots=4, corpus=None, search_engine=lambda: BM25(PASSAGES)
    )
    search = made.source(seed=0, step=1, noise=1.0)
    search.submit(Query('h', ROME, 0, 0, 'Rome capital'))
    (result,) = search.step()
    assert result.documents == tuple(d.as_text for d in BM25(PASSAGES).search(['Rome capital'], 2)[0])
    assert result.labels == () and not result.noisy


def test_the_oracle_gives_what_there_is():
    noisy, _ = ask_oracle(ROME, (True,) * 5)
    assert len(noisy) == 3


def test_gold_ids_are_those_that_the_question_names_in_order():
    metadata = {
        'supporting_ids': ['b', 'a'],
        'decomposition': [{'passage': 'a'}, {'passage': 'c'}, {'pid': None}, {'pid': 0}],
    }
    assert gold_ids(Question('x', 'y', ('z',), metadata=metadata)) == ('b', 'a', 'c', '0')
    assert gold_ids(ROME) == ()


def test_documents_without_a_title_are_their_text():
    assert Document('', 'x').as_text == 'x'
    assert Document('T', 'x').as_text == 'T. x'


# ---------------------------------------------------------------- frozen weights


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope='module')
def params(mesh):
    base = tiny_params(mesh)
    adapter = jax.tree.map(lambda w: w + 0.02, sharding.init(lora.layout(TINY, 2), jax.random.key(1), mesh))
    return lora.combine(base, adapter)


def test_int8_kernels_are_within_half_a_step_of_the_merged_ones(params):
    merged, small = lora.merge(params)['layers'], quant.quantize(params)['layers']
    for name in lora.TARGETS:
        assert small[name].dtype == jnp.int8 and small[name].shape == merged[name].shape
        scale = small[f'{name}_scale'][:, None, :]
        assert np.all(np.abs(small[name] * scale - merged[name]) <= scale / 2 * 1.001)
        assert np.all(np.max(np.abs(small[name]), axis=1) == 127)  # every channel uses the range
    assert not any('_lora_' in name for name in small)


@pytest.mark.thorough
@pytest.mark.parametrize('weights', ['as_loaded', 'int8'])
def test_weights_of_a_simulator_alone_are_taken_over(mesh, monkeypatch, weights):
    models, load = [], pretrained.load_model
    monkeypatch.setattr(pretrained, 'load_model', lambda *args: models.append(load(*args)) or models[-1])
    cfg = SimulatorConfig(model='tiny', prompt_tokens=64, max_tokens=8, slots=2, weights=weights)
    made = open_simulator(cfg, EndpointConfig(), mesh=mesh, decode_steps=4, slots=4, corpus=None, search_engine=None)
    assert weights == 'int8' or all(w.is_deleted() for w in models[0].params['layers'].values())
    expected = load('tiny', mesh).params
    with jax.set_mesh(mesh):
        expected = quant.quantize(expected) if weights == 'int8' else expected
        expected = serving.base_layout(expected, TINY, mesh, dtype='float32')
    jax.tree.map(np.testing.assert_array_equal, made.engine._slots._weights.get([0]), expected)


def test_template_arguments_reach_the_template_of_a_simulator(mesh, monkeypatch):
    model = pretrained.load_model('tiny', mesh)
    model.tokenizer.hf.chat_template = '{{ messages[0].content }}{% if enable_thinking is false %}fast{% endif %}'
    cfg = SimulatorConfig(model='tiny', prompt_tokens=64, max_tokens=8, template_arguments='{"enable_thinking": false}')
    prompts_seen = []
    for changes in ({}, {'template_arguments': ''}):
        options = {'mesh': mesh, 'decode_steps': 4, 'log': Journal(), 'loaded': ('tiny', model)}
        writer = open_writer(dataclasses.replace(cfg, **changes), EndpointConfig(), **options)
        monkeypatch.setattr(writer.engine, 'open', lambda request: prompts_seen.append(request.prompt))
        writer.ask(0, 'hello', (0,))
    assert list(map(model.tokenizer.decode, prompts_seen)) == ['hellofast', 'hello']
    with pytest.raises(ValueError, match='template_arguments must be a JSON object'):
        SimulatorConfig(template_arguments='enable_thinking=false')


def test_a_layer_computes_with_the_scale_and_the_bias():
    kernel, x = np.random.default_rng(0).normal(size=(2, 8, 6)), np.random.default_rng(1).normal(size=(3, 8))
    stack = {name: jnp.asarray(kernel, jnp.float32) for name in lora.TARGETS}
    small = quant.quantize({'layers': stack})['layers']
    layer = {'q': small['q'][1], 'q_scale': small['q_scale'][1], 'q_bias': jnp.arange(6.0)}
    expected = x @ (np.asarray(layer['q'], np.float64) * np.asarray(layer['q_scale'])) + np.arange(6)
    assert np.allclose(layers.linear(layer, 'q', jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


@pytest.mark.thorough
def test_an_engine_of_int8_weights_keeps_them_small_and_writes_nearly_the_same(mesh, params):
    with jax.set_mesh(mesh):
        served = serving.base_layout(quant.quantize(params), TINY, mesh, dtype=jnp.float32)
    assert served['layers'][0]['down'].dtype == jnp.int8
    asked = requests((3, 9, 17, 30), 12)
    exact = drain(tiny_engine(mesh, params, temperature=0.0), asked)
    small = drain(tiny_engine(mesh, quant.quantize(params), temperature=0.0), asked)
    differences = [np.abs(np.subtract(exact[h].logprobs[:1], small[h].logprobs[:1])).max() for h in exact]
    assert 0 < max(differences) < 0.1


def test_a_simulator_of_the_policys_model_is_not_loaded_again(mesh, monkeypatch):
    model = pretrained.load_model('tiny', mesh)
    loaded = []
    monkeypatch.setattr(
        Engine, 'load', lambda self, params, *, owned, **_: loaded.append(params) or owned == 0 or 1 / 0
    )
    monkeypatch.setattr('zerosearch_jax.pretrained.load_model', lambda *_: pytest.fail('loaded again'))
    cfg = SimulatorConfig(model='tiny', prompt_tokens=64, max_tokens=8, slots=2)
    open_simulator(
        cfg,
        EndpointConfig(),
        mesh=mesh,
        decode_steps=4,
        slots=4,
        corpus=None,
        search_engine=None,
        loaded=('tiny', model),
    )
    trainable = make_trainable(model, PolicyConfig(model='tiny', lora_rank=2), mesh, 0)
    policy = lora.combine(trainable.frozen, trainable.params)
    shared = [name for name in loaded[0]['layers'] if loaded[0]['layers'][name] is policy['layers'][name]]
    assert set(lora.TARGETS) <= set(shared)
    assert loaded[0]['embed'] is policy['embed'] is model.params['embed']
