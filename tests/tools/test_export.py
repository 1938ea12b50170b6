"""What is exported is a directory that others load: its files, its card, and with torch its logits and answers."""

import functools
import http.server
import json
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from helpers import ROOT, TINY, full_logits, tiny_params

from zerosearch_jax import pretrained, prng, sharding
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.generate.engine import Request
from zerosearch_jax.models import lora
from zerosearch_jax.policy import PolicyConfig, export_weights, make_trainable, open_policy, policy_params
from zerosearch_jax.rollout import prompts
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.run import jsonl
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer, byte_tokenizer
from zerosearch_jax.tools import card, export
from zerosearch_jax.weights import download

MESH = sharding.make_mesh()
RUN = {
    'policy': {'model': 'MODEL'},
    'rollout': {'prompt': 'search', 'prompt_format': 'chat'},
    'rl': {'algorithm': 'grpo'},
    'simulator': {'kind': 'model'},
    'data': {'test': 'world'},
    'engine': {'kind': 'bm25'},
    'evaluation': {'temperature': 0.0},
}


@pytest.fixture
def run(tmp_path):
    """A run's directory: an adapter over a saved model whose predictions are peaked, and what was measured."""
    model = pretrained.Model(TINY, byte_tokenizer(), tiny_params(MESH))
    base = export_weights(model.params, model, False, tmp_path / 'base', '{}')
    resolved = json.dumps(RUN).replace('MODEL', str(base))
    adapter = make_trainable(model, PolicyConfig(lora_rank=2), MESH, 0).params
    adapter['layers']['q_lora_b'] += 0.5
    directory = tmp_path / 'run'
    directory.mkdir()
    (directory / 'config.json').write_text(resolved)
    export_weights(adapter, model, True, directory, resolved)
    for step, em in ((0, 0.25), (3, 0.75)):
        about = {'step': step, 'status': 'answered', 'searches': [{}] * step}
        rows = [{'id': i, 'em': em, 'f1': em / 2, 'cover_em': em} | about for i in range(4)]
        jsonl.write_jsonl(directory / 'evaluation' / f'step_{step:06d}.jsonl', rows)
    jsonl.write_jsonl(directory / 'metrics.jsonl', [{'step': i, 'reward/mean': i / 4} for i in (1, 2, 3)])
    return directory


def exported(run, tmp_path, **options):
    export.export(str(run), tmp_path / 'out', **options)
    return tmp_path / 'out'


@pytest.mark.parametrize('merge', [False, True])
def test_the_files_of_an_export(run, tmp_path, merge):
    out = exported(run, tmp_path, merge=merge)
    weights = {'config.json', 'model.safetensors'} if merge else {'adapter_config.json', 'adapter_model.safetensors'}
    others = {'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'generation_config.json', 'README.md'}
    assert {path.name for path in out.iterdir()} == weights | others | {'curves.png'}
    assert not (run / 'curves.png').exists()  # of the run nothing is changed
    generation = json.loads((out / 'generation_config.json').read_text())
    assert generation['stop_strings'] == ['</search>', '</answer>']
    assert generation['eos_token_id'] == list(byte_tokenizer().eos_ids)
    messages = [{'role': 'user', 'content': 'Where is Rome?'}]
    assert Tokenizer.load(out).chat(messages) == byte_tokenizer().chat(messages)
    with pytest.raises(ValueError, match='is not overwritten'):
        export.export(str(run), out, merge=not merge)


def test_the_card_says_what_was_measured(run, tmp_path):
    text = (exported(run, tmp_path) / 'README.md').read_text()
    _, front, body = text.split('---\n', 2)
    assert yaml.safe_load(front) == {
        'library_name': 'peft',
        'pipeline_tag': 'text-generation',
        'tags': ['zerosearch', 'search', 'lora'],
    }  # a local model has no name on the hub
    assert '(grpo)' in body and 'search that a language model simulates' in body
    assert '| 0 | 0.250 [0.250, 0.250] | 0.125 [0.125, 0.125] | 0.00 | 0 |' in body
    assert '| 3 | 0.750 [0.750, 0.750] | 0.375 [0.375, 0.375] | 3.00 | 0 |' in body
    assert '4 held-out questions of world, temperature 0.0, engine bm25' in body
    assert 'Mean reward: 0.250 at step 1, 0.750 at step 3.' in body
    assert '](curves.png)\n' in body
    assert '\n    Question: {question}\n' in body and '`</search>` or `</answer>`' in body
    assert json.loads(''.join(body.partition('## Configuration')[2].split('    ')))['rl'] == {'algorithm': 'grpo'}


def test_the_card_tells_data_sets_apart(run, tmp_path):
    path = run / 'evaluation' / 'step_000003.jsonl'
    rows = jsonl.read_jsonl(path)
    jsonl.write_jsonl(
        path, [row | {'dataset': 'nq|x' if row['id'] else 'musique', 'em': row['id'] > 0} for row in rows]
    )
    text = (exported(run, tmp_path) / 'README.md').read_text()
    assert '| 3, musique | 0.000 [' in text and '| 3, nq\\|x | 1.000 [' in text and '| 0, ' not in text


def test_the_card_of_what_was_not_measured_says_so(run, tmp_path):
    (run / 'adapter.safetensors').rename(tmp_path / 'moved.safetensors')
    export.export(str(tmp_path / 'moved.safetensors'), tmp_path / 'out')
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert '## Results\n\nNot run.\n' in text and 'curves.png' not in text and '"algorithm": "grpo"' in text
    shipped = card.card(card.Trained('smollm2_policy', False, 'owner/name', {}), 'a|b`\n# c', 'owner/name', False)
    assert (
        'Not run.' in shipped and 'Not known.' in shipped and yaml.safe_load(shipped[4:].split('---')[0])['base_model']
    )
    assert '\n# a\\|b\\` \\# c\n' in shipped  # what a name holds formats nothing


def test_the_card_of_an_earlier_step_counts_only_what_was_done_until_then(run):
    rows = [{'step': i, 'reward/mean': i / 4, 'cost/failed_queries': i} for i in (1, 2, 3)]
    jsonl.write_jsonl(run / 'metrics.jsonl', rows)
    (run / 'summary.json').write_text(json.dumps({'steps': 3, 'cost': {'text': 'cost: all'}, 'failed_searches': 6}))
    config = json.loads((run / 'config.json').read_text())
    early, late = (card.card(card.Trained('x', False, '', config, run, step), 'x', '', False) for step in (2, None))
    assert 'Training took' not in early and '\n3 of its searches failed' in early
    assert 'Training took all.' in late and '\n6 of its searches failed' in late


def test_the_card_of_early_stopping_has_the_loss_of_the_weights_that_it_kept(tmp_path):
    rows = [{'step': step, 'loss/held_out': loss} for step, loss in ((10, 0.5), (20, 0.1), (30, 0.3))]
    jsonl.write_jsonl(tmp_path / 'metrics.jsonl', rows)
    for patience, step, told in (
        (2, None, 'step 20: 0.1000'),
        (2, 30, 'step 30: 0.3000'),
        (0, None, 'step 30: 0.3000'),
    ):
        config = {'demos': {'source': 'world:policy'}, 'sft': {'patience': patience, 'steps': 100}}
        found = card.Trained('x', False, '', config, tmp_path, step)
        assert f'Held-out loss after {told} nats' in card.card(found, 'x', '', False)


def test_a_simulator_has_no_stop_strings(run, tmp_path):
    taught = json.dumps(
        {'model': {'model': str(tmp_path / 'base/model')}, 'demos': {'source': 'world:simulator'}, 'rollout': {}}
    )
    model = pretrained.load_model(str(tmp_path / 'base/model'), MESH)
    adapter = pretrained.load_adapter(str(run / 'adapter.safetensors'), TINY, MESH)
    (tmp_path / 'sft').mkdir()
    (tmp_path / 'sft' / 'config.json').write_text(taught)
    export_weights(adapter, model, True, tmp_path / 'sft', taught)
    jsonl.write_jsonl(tmp_path / 'sft' / 'metrics.jsonl', [{'step': 8, 'loss/held_out': 1.5}])
    out = exported(tmp_path / 'sft', tmp_path)
    assert 'stop_strings' not in json.loads((out / 'generation_config.json').read_text())
    text = (out / 'README.md').read_text()
    assert 'plays a search engine, fine-tuned on demonstrations' in text and '## Use' not in text
    assert 'Held-out loss after step 8: 1.5000 nats' in text


def listing(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob('*')) if path.is_file()}


@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize('place', ['peft', 'run', 'file', 'base', 'model', 'link', 'inside'])
def test_export_into_the_directory_that_it_reads_is_refused(run, tmp_path, place, merge):
    exported(run, tmp_path)
    (tmp_path / 'link').symlink_to(tmp_path / 'out')
    base = tmp_path / 'base' / 'model'
    reference, directory = {
        'peft': (tmp_path / 'out', tmp_path / 'out'),
        'run': (run, run),
        'inside': (run, run / 'weights'),
        'file': (run / 'adapter.safetensors', run),
        'base': (run, base),
        'model': (tmp_path / 'base', base),
        'link': (tmp_path / 'link', tmp_path / 'out' / '..' / 'out'),
    }[place]
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=r'holds the weights to export; choose another directory'):
        export.export(str(reference), directory, merge=merge)
    assert listing(tmp_path) == before


@pytest.mark.parametrize('merge', [False, True])
def test_export_into_another_run_is_refused(run, tmp_path, merge):
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'config.json').write_text(json.dumps(RUN))
    with pytest.raises(ValueError, match=r'other holds config\.json, which is not overwritten; choose another'):
        export.export(str(run), other, merge=merge)
    assert [path.name for path in other.iterdir()] == ['config.json']


def test_a_model_below_the_present_directory_can_be_exported_there(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # an export may be written anew
        export.export('base/model', pathlib.Path('again'), dtype='float32')
    assert (tmp_path / 'again' / 'model.safetensors').is_file()


def test_an_adapter_without_a_model_asks_for_one(run, tmp_path):
    out = exported(run, tmp_path)
    config = json.loads((out / 'adapter_config.json').read_text())
    (out / 'adapter_config.json').write_text(json.dumps(config | {'base_model_name_or_path': None}))
    with pytest.raises(ValueError, match='give --base'):
        export.export(str(out), tmp_path / 'again')
    export.export(str(out), tmp_path / 'again', base=config['base_model_name_or_path'])


# ---------------------------------------------------------------- with torch


def greedy(engine, prompt, budget):
    engine.open(Request(0, tuple(prompt), prng.row_key('policy', 0), budget))
    while not (stopped := engine.step()):
        pass
    return list(stopped[0].tokens)


def test_transformers_and_peft_compute_the_same(run, tmp_path):
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = pretrained.load_model(str(tmp_path / 'base/model'), MESH)
    params = lora.combine(model.params, pretrained.load_adapter(str(run / 'adapter.safetensors'), TINY, MESH))
    tokenizer = AutoTokenizer.from_pretrained(exported(run, tmp_path, merge=True, dtype='float32'))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / 'out', dtype=torch.float32)
    messages = [{'role': 'user', 'content': 'Where is Rome?'}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == model.tokenizer.chat(messages)
    tokens = torch.tensor([ids])
    with jax.set_mesh(MESH):
        ours = np.asarray(full_logits(params, jnp.asarray([ids])))
    with torch.no_grad():
        np.testing.assert_allclose(theirs(tokens).logits.numpy(), ours, atol=1e-4)
    engine = open_policy(model, RolloutConfig(slots=1), MESH, dtype='float32')
    engine.load(params, temperature=0.0)
    answer = theirs.generate(tokens, tokenizer=tokenizer, max_new_tokens=24, do_sample=False)
    assert answer[0, len(ids) :].tolist() == greedy(engine, ids, 24)
    peft = pytest.importorskip('peft')
    export.export(str(run), tmp_path / 'adapter')
    base = AutoModelForCausalLM.from_pretrained(tmp_path / 'base/model', dtype=torch.float32)
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter')(tokens).logits.numpy()
    np.testing.assert_allclose(adapted, ours, atol=1e-4)


@functools.cache
def smollm():
    try:
        return download.resolve('smollm2-135m-instruct')
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_the_shipped_policy_writes_the_same_query_in_transformers(tmp_path):
    """Both stop at the stop string of the export."""
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smollm()
    export.export('smollm2_policy', tmp_path, merge=True, dtype='float32')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    messages = [{'role': 'user', 'content': prompts.policy_prompt('Which country is Osaka in?')}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = theirs.generate(torch.tensor([ids]), tokenizer=tokenizer, max_new_tokens=60, do_sample=False)
    model = pretrained.load_model('smollm2-135m-instruct', MESH)
    engine = open_policy(model, RolloutConfig(slots=1), MESH, dtype='float32')
    engine.load(policy_params(model, PolicyConfig(adapter='smollm2_policy'), MESH), temperature=0.0)
    ours = greedy(engine, ids, 60)
    assert answer[0, len(ids) :].tolist() == ours
    assert model.tokenizer.decode(ours).endswith('</search>') and pathlib.Path(tmp_path / 'README.md').exists()


# ---------------------------------------------------------------- the loop of the guide


class Completions(http.server.BaseHTTPRequestHandler):
    """/v1/completions that plays `server.texts`, and notes what it was asked."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.asked.append(body)
        reply = json.dumps({'choices': [{'text': self.server.texts[len(self.server.asked) - 1]}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize('ending', ['<answer> Italy </answer>', 'hm'])
def test_the_loop_of_the_guide_runs(ending):
    guide = (ROOT / 'docs' / 'export.md').read_text()
    namespace: dict = {}
    exec(guide.split('```python\n')[1].split('```')[0], namespace)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Completions)
    server.asked, server.texts = [], ['<think>x</think><search>Rome</search>', ending]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tokenizer, url = byte_tokenizer(), f'http://127.0.0.1:{server.server_port}'
    search = BM25([Passage('r', 'Rome', 'is in </information> Italy')]).search
    found = namespace['answer']('Where is Rome', search, tokenizer, url=url, model='exported')
    server.shutdown()
    assert found == ('Italy' if 'Italy' in ending else None)
    first, second = (body['prompt'] for body in server.asked)
    assert first == tokenizer.chat([{'role': 'user', 'content': prompts.policy_prompt('Where is Rome')}])
    assert second[: len(first)] == first  # appended to, never written anew
    seen = '\n<information>\nDoc 1: Rome. is in (/information) Italy\n</information>\n'
    assert tokenizer.decode(second[len(first) :]) == server.texts[0] + seen
    assert {tuple(body['stop']) for body in server.asked} == {protocol.STOP_STRINGS}
