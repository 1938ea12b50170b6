"""The viewer: what is in its file, and what a real browser makes of it (skipped where there is no chromium)."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from zerosearch_jax.data.rows import Question
from zerosearch_jax.evaluate import report
from zerosearch_jax.evaluate.scores import as_row
from zerosearch_jax.rollout.rollout import Trajectory
from zerosearch_jax.run import jsonl
from zerosearch_jax.text.tokenizer import byte_tokenizer
from zerosearch_jax.text.trajectory import Kind, Segment
from zerosearch_jax.tools import view

HOSTILE = [
    '</script><script>window.ran = 1</script>',
    '<img src=x onerror="window.ran = 2">',
    '<!--<script>',
    'half \ud83d of a pair',
    'over \u202e ride',
    'nul \x00 esc \x1b[31m',
    '{{facts}} {{bodies}}',
    'line \u2028 separator',
]


def action(text, logprob=-0.5):
    return {
        'kind': 'action',
        'tokens': len(text),
        'text': text,
        'characters': [1] * len(text),
        'logprobs': [logprob] * len(text),
    }


def episode(i, *, step=1, question=None, answer='Paris', documents=('The capital is Paris.',), labels=(False,), **more):
    """A row as training writes it: question i // 2, sample i % 2."""
    right = answer == 'Paris'
    query = {'query': f'capital {i}', 'noisy': any(labels), 'labels': [*labels], 'failure': '', 'attempts': 1}
    shown = '\n'.join(f'Doc {n}: {text}' for n, text in enumerate(documents, 1))
    segments = [
        {'kind': 'prompt', 'tokens': 3, 'text': f'Question: {question}'},
        action(f'<think>hm</think><search>capital {i}</search>'),
        {'kind': 'observation', 'tokens': 9, 'text': f'\n<information>\n{shown}\n</information>\n'},
        action(f'<answer>{answer}</answer>', -2.0) | {'gaps': [0.0, 0.25] + [-0.01] * (len(answer) + 15)},
    ]
    return {
        'step': step,
        'id': f'q{i // 2}',
        'sample': i % 2,
        'question': question or f'What is the capital of country {i // 2}?',
        'golden_answers': ['Paris'],
        'answer': answer,
        'status': 'answered',
        'reward': float(right),
        'advantage': 1.0 if right else -1.0,
        'em': float(right),
        'cover_em': float(right),
        'f1': float(right),
        'action_tokens': 40,
        'response_tokens': 60,
        'searches': [query | {'documents': [*documents]}],
        'segments': segments,
    } | more


def make_run(workdir, rows, steps=6):
    curves = [
        {'step': s, 'reward/mean': s / 10, 'rollout/noise': s / 20, 'rollout/searches': 1.5, 'loss/entropy': 2.0 / s}
        for s in range(1, steps + 1)
    ]
    evaluated = [{'step': s, 'eval/em': s / 10, 'eval/f1': s / 10} for s in (0, steps)]
    jsonl.write_jsonl(workdir / 'metrics.jsonl', [*curves, *evaluated])
    jsonl.write_jsonl(workdir / 'trajectories.jsonl', rows)
    for step in (0, steps):
        jsonl.write_jsonl(workdir / 'evaluation' / f'step_{step:06d}.jsonl', [episode(0, step=step, labels=())])
    (workdir / 'config.json').write_text(json.dumps({'seed': 3, 'policy': {'model': 'tiny'}}))
    return view.write(workdir)


def some():
    """24 trajectories of 12 questions: every fourth is wrong, every third had noisy documents."""
    return [
        episode(i, step=1 + i // 4, answer='Rome' if i % 4 == 3 else 'Paris', labels=(i % 3 == 0,)) for i in range(24)
    ]


def facts_of(page):
    return json.loads(re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.DOTALL)[1])


def bodies_of(page):
    packed = re.findall(r'<script type="text/plain" class="bodies">(.*?)</script>', page)
    return [row for part in packed for row in json.loads(gzip.decompress(base64.b64decode(part)))]


# ---------------------------------------------------------------- the file


def test_the_file_holds_curves_and_every_trajectory(tmp_path):
    rows = [episode(i) for i in range(view.TOGETHER + 3)]
    page = make_run(tmp_path, rows).read_text()
    facts, bodies = facts_of(page), bodies_of(page)
    assert facts['sources'] == ['training', 'evaluation after step 0', 'evaluation after step 6']
    assert facts['series']['reward/mean'] == [[s, s / 10] for s in range(1, 7)]
    assert [p['title'] for p in facts['panels'] if p['twin']] == ['Reward', 'Searches per question']
    assert len(facts['rows']) == len(bodies) == len(rows) + 2
    index = [dict(zip(facts['columns'], row, strict=True)) for row in facts['rows']]
    assert index[1]['question'] == rows[1]['question'] and index[1]['group'] == index[0]['group'] != index[2]['group']
    assert index[-1]['group'] == index[-2]['group']  # the same question after other steps
    assert [index[0]['noisy'], index[-1]['noisy']] == [0, None]  # a real engine's documents have no label
    assert bodies[5]['segments'] == rows[5]['segments']


def test_a_run_at_a_step_is_shown_up_to_there_and_says_that_it_is_not_finished(tmp_path):
    rows = [episode(i, step=step) for step in (1, 3) for i in range(2)]
    make_run(tmp_path, rows)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(config | {'rl': config.get('rl', {}) | {'steps': 9}}))
    facts = facts_of(view.write(tmp_path, 2).read_text())
    assert len(facts['rows']) == 2 + 1 and max(step for step, _ in facts['series']['reward/mean']) == 2
    assert 'not finished: step 2 of 9' in facts['about']
    assert len(facts_of(view.write(tmp_path).read_text())['rows']) == 4 + 2


def test_a_step_before_the_first_one_is_told_from_a_directory_that_is_no_run(tmp_path):
    jsonl.write_jsonl(tmp_path / 'metrics.jsonl', [{'step': step, 'reward/mean': 0.5} for step in (3, 4)])
    with pytest.raises(ValueError, match=r'--step=2: the first row of .* is of step 3'):
        view.write(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match='holds no run'):
        view.write(tmp_path / 'x', 2)


def test_the_curves_of_other_runs_stand_beside_those_of_the_first(tmp_path):
    first, other = (make_run(tmp_path / name, some()).parent for name in 'ab')
    facts = facts_of(view.write(first, 2, [other]).read_text())
    assert facts['beside'] == [[str(other), facts['series']]] and len(facts['series']['reward/mean']) == 2
    assert facts_of(view.write(first).read_text())['beside'] == []
    with pytest.raises(FileNotFoundError, match='x has no curves'):
        view.write(first, None, [tmp_path / 'x'])


def test_what_anybody_wrote_cannot_leave_its_place(tmp_path):
    rows = [episode(i, question=text, answer=text, documents=[text]) for i, text in enumerate(HOSTILE)]
    plain = make_run(tmp_path / 'plain', [episode(i) for i in range(len(HOSTILE))]).read_text()
    page = make_run(tmp_path / '<b>&', rows).read_text()
    assert page.count('<script') == plain.count('<script') and page.count('</script') == plain.count('</script')
    assert '<!--<' not in page and '<b>' not in page
    assert [row[view.COLUMNS.index('question')] for row in facts_of(page)['rows'][:-2]] == HOSTILE
    assert bodies_of(page)[0]['segments'][0]['text'] == f'Question: {HOSTILE[0]}'


def test_numbers_that_json_has_not_are_gaps(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss/kl": NaN}\n{"step": 2, "loss/kl": 0.5}\n')
    assert facts_of(view.write(tmp_path).read_text())['series'] == {'loss/kl': [[1, None], [2, 0.5]]}


def test_an_evaluation_of_methods_opens_too(tmp_path):
    about = [{'method': m, 'dataset': 'nq', 'weights': 'w'} for m in ('rag', 'agent')]
    rows = [{k: v for k, v in (one | episode(0)).items() if k not in ('step', 'reward', 'advantage')} for one in about]
    jsonl.write_jsonl(tmp_path / 'results.jsonl', rows)
    facts = facts_of(view.write(tmp_path).read_text())
    assert facts['sources'] == ['rag, nq', 'agent, nq']
    assert [row[view.COLUMNS.index('group')] for row in facts['rows']] == [0, 0]
    assert facts['evaluations'][0] == ['rag, nq', 1, 1.0, 1.0, 1.0, 1.0, 0]


def test_each_of_a_methods_weights_has_scores_of_its_own(tmp_path):
    asked = [('rag', 'model', 1.0, ''), ('agent', 'first', 0.0, ''), ('agent', 'second', 0.0, 'search_failed')]
    asked += [('agent', 'second', 1.0, '')]  # asked again after its search failed
    rows = [
        episode(0, em=em) | {'method': method, 'dataset': 'nq', 'weights': weights, 'status': status or 'answered'}
        for method, weights, em, status in asked
    ]
    jsonl.write_jsonl(tmp_path / 'results.jsonl', rows)
    facts = facts_of(view.write(tmp_path).read_text())
    found = {name: (count, em, failed) for name, count, em, *_, failed in facts['evaluations']}
    assert found == {'rag, nq': (1, 1, 0), 'agent, nq, first': (1, 0, 0), 'agent, nq, second': (1, 1, 0)}


def test_a_directory_that_is_no_run_is_told_in_one_line(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    arguments = [sys.executable, '-m', 'launch.view', str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1)
    assert done.stderr.startswith(f'error: {tmp_path} holds no run')
    assert not (tmp_path / 'index.html').exists()


def test_a_row_that_is_no_trajectory_is_told(tmp_path):
    jsonl.write_jsonl(tmp_path / 'trajectories.jsonl', [{'step': 1, 'golden_answers': []}])
    with pytest.raises(ValueError, match="training is no trajectory, it has no 'searches'"):
        view.write(tmp_path)


def test_rows_say_what_each_sampled_token_spelled():
    tokenizer = byte_tokenizer()
    tokens = (*'né'.encode(), 0xE2, tokenizer.eos_ids[0])  # é takes two tokens, and a character is never finished
    segments = [
        Segment(Kind.PROMPT, (65,)),
        Segment(Kind.ACTION, tokens, tuple(np.float32([-0.12345, -1, -2, -3, -4]))),
    ]
    trajectory = Trajectory(Question('q', 'why', ('a',)), 0, segments)
    row = as_row(trajectory, tokenizer)
    assert 'characters' not in row['segments'][0]
    assert row['segments'][1]['text'] == 'né\ufffd<|im_end|>'
    assert row['segments'][1]['characters'] == [1, 0, 1, 0, 11]
    assert row['segments'][1]['logprobs'] == [-0.123, -1, -2, -3, -4]
    assert 'gaps' not in row['segments'][1]
    assert as_row(trajectory, tokenizer, [0, 1e-6, 0.5, -0.25, 3])['segments'][1]['gaps'] == [0, 0, 0.5, -0.25, 3]


# ---------------------------------------------------------------- in a browser

ARGUMENTS = [
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'),
    *('--disable-background-networking', '--disable-component-update'),
]


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    driver, program = shutil.which('chromedriver'), shutil.which('chromium')
    if not (driver and program):
        pytest.skip('no browser: apt-get install chromium chromium-driver')
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (*ARGUMENTS, f'--user-data-dir={tmp_path_factory.mktemp("profile")}'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


class Page:
    """A page in the browser; after the test nothing was asked of the network, and nothing complained."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path, hash_='', width=1200, height=900):
        size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600}
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        self.driver.get('about:blank')
        self.driver.get(path.as_uri() + hash_)
        return self

    def js(self, code, *arguments):
        return self.driver.execute_script(f'return {code}', *arguments)

    def all(self, selector):
        return self.driver.find_elements('css selector', selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def texts(self, selector):
        return self.js('Array.from(document.querySelectorAll(arguments[0]), node => node.innerText)', selector)

    def wait(self, condition):
        """Until it holds, of a page that may be drawing itself anew."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        again = (StaleElementReferenceException, IndexError)
        WebDriverWait(self.driver, 20, 0.02, again).until(lambda _: condition())

    def see(self, text, selector='main'):
        self.wait(lambda: text in self.js('document.querySelector(arguments[0])?.innerText ?? ""', selector))

    def keys(self, *names):
        from selenium.webdriver import ActionChains, Keys

        for name in names:
            ActionChains(self.driver).send_keys(getattr(Keys, name, name)).perform()

    def count(self):
        return self.js('document.getElementById("count").textContent.split(" ")[0]')

    def focused(self):
        return self.js('document.activeElement.innerText')


@pytest.fixture
def page(chromium):
    chromium.get('about:blank')
    for kind in ('browser', 'performance'):
        chromium.get_log(kind)
    yield Page(chromium)
    assert [entry['message'] for entry in chromium.get_log('browser')] == []
    assert not chromium.find_elements('css selector', '#problem:not([hidden])')
    messages = [json.loads(entry['message'])['message'] for entry in chromium.get_log('performance')]
    asked = {m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent'}
    assert asked and {url.partition(':')[0] for url in asked} <= {'file', 'data', 'about'}
    assert len([url for url in asked if url.startswith('file')]) == 1


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp('run'), some())


def test_curves_are_read_by_pointer_and_by_key_and_lead_to_trajectories(page, run):
    page.open(run)
    charts = page.all('.chart')
    assert [c.find_element('tag name', 'h3').text for c in charts[:2]] == ['Reward', 'Evaluation: exact match']
    assert len(charts[0].find_elements('css selector', 'path.curve')) == 2  # reward, and noise on the right
    slider = charts[0].find_element('tag name', 'svg')
    page.js('arguments[0].focus()', slider)
    page.keys('HOME', 'ARROW_RIGHT')
    assert slider.get_attribute('aria-valuetext') == 'step 2: reward/mean 0.200, rollout/noise 0.100'
    assert 'mean 0.200' in charts[0].text and 'entropy 1' in page.one('#overview').text  # in every chart
    from selenium.webdriver import ActionChains

    ActionChains(page.driver).move_to_element(slider).perform()
    page.wait(lambda: slider.get_attribute('aria-valuenow') in ('3', '4'))
    ActionChains(page.driver).click().perform()
    page.see('4 of 26 trajectories')
    assert {row.find_element('css selector', '.step').text for row in page.all('tr.row')} <= {'3', '4'}


def test_another_run_is_dashed_in_every_chart_and_read_at_the_same_step(page, tmp_path):
    first, other = (make_run(tmp_path / name, some()).parent for name in 'ab')
    page.open(view.write(first, None, [other]))
    chart = page.all('.chart')[0]
    # one read: the page may draw its charts anew between two
    curves = page.js('Array.from(arguments[0].querySelectorAll("path.curve"), path => path.className.baseVal)', chart)
    assert curves == ['curve c0', 'curve cn dashed', 'curve c2 dashed']  # reward, noise, the other's reward
    assert f'{other}: mean' in chart.text
    slider = chart.find_element('tag name', 'svg')
    page.js('arguments[0].focus()', slider)
    page.keys('HOME')
    assert slider.get_attribute('aria-valuetext').endswith(f'rollout/noise 0.050, {other} reward/mean 0.100')


def test_filters_and_order(page, run):
    page.open(run, '#view=list')
    assert page.count() == '26'
    page.one('[name=q]').send_keys('country 7?')
    page.wait(lambda: page.count() == '2')
    page.one('[name=q]').send_keys(' nowhere')
    page.see('No trajectory is like that')
    page.driver.find_element('xpath', '//button[text()="Reset"]').click()
    page.wait(lambda: page.count() == '26')
    for name, value, left in (('documents', 'noisy', '8'), ('most', '0', '2'), ('from', '4', '1')):
        field = page.one(f'[name={name}]')
        field.send_keys(value)
        page.wait(lambda left=left: page.count() == left)
    assert 'Rome' in page.one('tr.row').text
    page.open(run, '#view=list&sort=-score')
    scores = [cell.text for cell in page.all('.score')]
    assert scores == sorted(scores, reverse=True) and scores[-1] == '0'
    page.driver.find_element('xpath', '//th//button[text()="Score"]').click()
    page.wait(lambda: page.one('th[data-name=score]').get_attribute('aria-sort') is None)


def test_a_trajectory_and_its_group(page, run):
    page.open(run, '#view=list')
    page.all('tr.row a')[3].click()
    page.see('What is the capital of country 1?', '#trajectory h1')
    assert [h.text.split(' · ')[0] for h in page.all('.transcript > .block h3')] == [
        *('Think', 'Search', 'Information', 'Answer')
    ]
    assert [mark.text for mark in page.all('.transcript mark')] == ['Paris']
    assert page.one('.transcript .label').text == 'noisy'  # trajectory 3
    assert [h.text for h in page.all('.columns h3')] == ['sample 0', 'sample 1, this one']
    assert '→\nRome' in page.one('.columns .here').text
    page.one('[name=colour][value=logprob]').click()
    written = '<think>hm</think>', '<search>capital 3</search>', '<answer>Rome</answer>'
    page.wait(lambda: len(page.all('.token')) == sum(map(len, written)))
    assert page.focused() is not None and page.js('document.activeElement.value') == 'logprob'
    colours = [page.all('.transcript .k-' + kind + ' .token')[0].value_of_css_property('background-color')
               for kind in ('think', 'answer')]  # fmt: skip
    assert colours[0] != colours[1]
    page.all('.token')[0].click()
    assert 'log-prob -0.500, probability 0.607' in page.one('#told').text
    page.one('[name=colour][value=gap]').click()
    page.wait(lambda: page.js('document.activeElement.value') == 'gap')
    colours = [
        token.value_of_css_property('background-color') for token in page.all('.transcript .k-answer .token')[:3]
    ]
    assert len(set(colours)) == 3
    page.all('.transcript .k-answer .token')[1].click()
    assert 'probability 0.135, trainer’s +0.25' in page.one('#told').text
    page.one('#whole').click()
    page.wait(lambda: len(page.all('.columns .k-information')) == 2)
    again = page.js('location.hash')
    page.open(run, again)  # a link is enough to see the same
    page.wait(lambda: len(page.all('.columns .k-information')) == 2 and page.all('.token'))
    page.all('.columns a')[0].click()
    page.see('sample 0, this one')


def test_labels_stay_with_the_documents_that_were_shown(page, tmp_path):
    cut = episode(0, labels=(True,))  # its second search came when no tokens were left for documents
    cut['searches'] = [*cut['searches'], cut['searches'][0] | {'labels': [False], 'noisy': False}]
    cut['searches'][0] |= {'mislabelled': True}
    cut['segments'] = cut['segments'][:3]
    asked = episode(2, labels=(False,))  # documents in the prompt, as `rag` has them
    asked['segments'] = [{'kind': 'prompt', 'tokens': 9, 'text': 'Doc 1: Paris\nWhy?'}, action('Paris')]
    run = make_run(tmp_path, [cut, asked])
    page.open(run, '#t=training/1/q0/0')
    page.wait(lambda: page.all('.transcript .label'))
    assert [label.text for label in page.all('.transcript .label')] == ['noisy']
    assert 'not as labelled' in page.one('.transcript .k-information').text
    assert 'with the documents' not in page.one('.transcript .k-prompt').text
    page.open(run, '#t=training/1/q1/0')
    page.wait(lambda: 'with the documents of a search' in page.one('.transcript .k-prompt').text)


def test_a_search_with_one_noisy_document_is_mixed(page, tmp_path):
    rows = [episode(i, labels=labels) for i, labels in enumerate([(True, False, False), (True, True), (False,)])]
    del rows[1]['searches'][0]['labels']  # as an earlier version wrote it
    run = make_run(tmp_path, rows)
    page.open(run, '#view=list')
    assert page.texts('tr.row .documents')[:3] == ['mixed', 'noisy', 'useful']
    page.open(run, '#t=training/1/q0/0')
    page.wait(lambda: page.texts('.columns .label') == ['mixed', 'noisy'])


def test_by_keyboard_alone(page, run):
    page.open(run, '#view=list')
    for _ in range(40):
        page.keys('TAB')
        if page.js('document.activeElement.matches("tr.row")'):
            break
    assert page.js('document.activeElement.dataset.n') == '0'
    assert page.driver.switch_to.active_element.value_of_css_property('outline-style') != 'none'
    page.keys('ARROW_DOWN', 'ARROW_DOWN', 'ARROW_DOWN', 'ARROW_UP', 'ENTER')
    page.see('country 1?', '#trajectory h1')
    assert 'country 1?' in page.focused()
    page.keys('ARROW_RIGHT', 'ARROW_RIGHT')
    page.see('country 2?', '#trajectory h1')
    page.keys('ARROW_LEFT')
    page.see('country 1?', '#trajectory h1')
    page.keys('ESCAPE')
    page.wait(lambda: page.js('document.activeElement.dataset.n') == '3')
    page.keys('END')
    assert page.js('document.activeElement.dataset.n') == '25'


def test_hostile_strings_are_seen_as_text_and_nothing_runs(page, tmp_path):
    rows = [
        episode(2 * i, question=text, answer=text, documents=[text], golden_answers=[text])
        for i, text in enumerate(HOSTILE)
    ]
    path = make_run(tmp_path / 'a <i>b', rows)
    page.open(path, '#view=list')
    scripts = len(page.all('script'))
    seen = [re.sub('[\ud800-\udfff\u202e\x00\x1b\u2028]', lambda c: f'U+{ord(c[0]):04X}', text) for text in HOSTILE]
    for text in seen:
        page.see(text)
    for i, text in enumerate(seen):
        page.open(path, f'#t=training/1/q{i}/0')
        page.see(text, '#trajectory h1')
        page.see(f'Doc 1: {text}', '.transcript')
        page.see(f'<answer>{text}</answer>', '.transcript')
    assert page.js('window.ran') is None
    assert len(page.all('script')) == scripts and not page.all('img, i:not([class]), b:not(.legend b)')


def test_the_page_itself_refuses_html(page, run):
    page.open(run)
    refused = page.js(
        '(() => { try { document.body.innerHTML = "<b>x</b>"; } catch (error) { return error.name; } })()'
    )
    assert refused == 'TypeError'
    page.driver.get_log('browser')  # that it was refused


def test_ten_thousand_trajectories(page, tmp_path):
    rows = [episode(i, step=1 + i // 100, answer='Rome' if i % 5 == 0 else 'Paris') for i in range(10_000)]
    page.open(make_run(tmp_path, rows), '#view=list')
    assert page.count() == '10,002'
    elements = lambda: page.js('document.querySelectorAll("body *").length')  # noqa: E731
    assert 100 < elements() < 1500
    page.js('scrollTo(0, document.body.scrollHeight / 2)')
    page.wait(lambda: 'country 2' in page.all('tr.row')[20].text)
    page.js('document.querySelector("tr.row[tabindex=\\"0\\"]").focus()')
    page.keys('END')
    page.wait(lambda: page.js('document.activeElement.dataset.n') == '10001')
    assert elements() < 1500
    page.one('[name=q]').send_keys('country 4321?')
    page.wait(lambda: page.count() == '2')
    page.all('tr.row a')[1].click()
    page.see('The capital is Paris.', '.transcript')
    assert page.js('document.title').endswith('What is the capital of country 4321?')
    page.open(tmp_path / 'index.html', '#view=list&most=0&from=51&to=60')
    page.wait(lambda: page.count() == '200')


@pytest.mark.parametrize('width', [320, 390])
def test_a_narrow_screen_needs_no_sideways_scrolling(page, tmp_path, width):
    long = episode(0, question='x' * 500, documents=['y' * 500], answer='z' * 300, status='token_limit')
    path = make_run(tmp_path, [long, episode(1, question='x' * 500)])
    for hash_ in ('', '#view=list', '#t=training/1/q0/0', '#t=training/1/q0/0&colour=logprob&beside=whole'):
        page.open(path, hash_, width=width, height=700)
        page.wait(lambda: page.js('document.querySelector("main h1") !== null'))
        assert page.js('document.documentElement.scrollWidth') <= width, hash_


def test_dark_mode_is_dark(page, run):
    def lightness():
        page.open(run)
        both = page.js('["backgroundColor", "color"].map(name => getComputedStyle(document.body)[name])')
        return [sum(map(int, re.findall(r'\d+', colour)[:3])) / 765 for colour in both]

    media = lambda value: {'features': [{'name': 'prefers-color-scheme', 'value': value}]}  # noqa: E731
    page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', media('dark'))
    dark = lightness()
    page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', media('light'))
    light = lightness()
    assert dark[0] < 0.2 < 0.8 < dark[1] and light[0] > 0.8 > 0.2 > light[1]


@pytest.mark.parametrize('hash_', ['', '#view=list', '#t=training/1/q0/0'])
def test_everything_one_can_use_has_a_name(page, run, hash_):
    page.open(run, hash_)
    page.wait(lambda: page.js('document.querySelector("main h1") !== null'))
    nodes = page.driver.execute_cdp_cmd('Accessibility.getFullAXTree', {})['nodes']
    named = [(n['role']['value'], n.get('name', {}).get('value', '')) for n in nodes if not n['ignored']]
    used = {'button', 'link', 'textbox', 'searchbox', 'combobox', 'spinbutton', 'slider', 'radio', 'table', 'region'}
    assert [role for role, name in named if role in used and not name.strip()] == []
    roles = {role for role, _ in named}
    assert {'main', 'navigation', 'banner'} <= roles
    assert {'': 'slider', '#view=list': 'search'}.get(hash_, 'radio') in roles


def test_a_key_that_an_old_configuration_holds_is_not_on_the_page(tmp_path):
    (tmp_path / 'config.json').write_text('{"engine": {"url": "http://h/?api_key=abcdef123"}}')
    jsonl.write_jsonl(tmp_path / 'metrics.jsonl', [{'step': 1, 'reward/mean': 0.5}])
    page = view.write(tmp_path).read_text()
    assert 'http://h/' in page and 'abcdef123' not in page


def test_failed_searches_and_questions_are_on_the_page(tmp_path):
    rows = [
        {'id': i, 'question': 'why?', 'golden_answers': ['b'], 'answer': None, 'searches': [], 'segments': []}
        | {'status': 'search_failed' if i == 'x' else 'answered', 'em': 1.0 * (i == 'a'), 'f1': 0.0, 'cover_em': 0.0}
        for i in 'abx'
    ]
    jsonl.write_jsonl(report.evaluation_file(tmp_path, 0), rows)
    jsonl.write_jsonl(tmp_path / 'metrics.jsonl', [{'step': 1, 'reward/mean': 0.5, 'cost/failed_queries': 7}])
    gain = {'mean': 0.5, 'interval': [0.25, 0.75], 'failed': 2}
    summary = {'failed_searches': 7, 'evaluations': {'0': report.scores_with_intervals(rows)}, 'em_gain': gain}
    (tmp_path / 'summary.json').write_text(json.dumps(summary))
    facts = view.write(tmp_path).read_text()
    assert '["evaluation after step 0",2,0.5,0.0,0.0,0.0,1]' in facts
    assert '["failed searches","7",' in facts and 'incomplete: 1 questions failed' in facts
    assert '"+0.500","paired, +0.250 to +0.750; incomplete: 2 questions failed"' in facts
