"""The documentation says what is there: links, commands, configuration, metrics, switches, tables, worked examples."""

import ast
import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tokenize
from importlib.util import find_spec

import pytest
import yaml
from helpers import ENVIRONMENT, ROOT

import zerosearch_jax
from configs import common, qwen2_5_3b
from zerosearch_jax.simulator import curriculum, prompts
from zerosearch_jax.simulator.curriculum import Curriculum, noise_probability
from zerosearch_jax.tools import api_reference, config_reference
from zerosearch_jax.train import config

DOCS = ROOT / 'docs'
PAGES = [*sorted(ROOT.glob('*.md')), *sorted(DOCS.glob('*.md')), ROOT / 'benchmarks' / 'README.md']


def ids(path):
    return str(path.relative_to(ROOT))


def plain(text):
    """A page without its code blocks."""
    return re.sub(r'^```.*?^```$', '', text, flags=re.DOTALL | re.MULTILINE)


def section(page, heading):
    """The text under a heading, up to the next one of its level or above."""
    text = (DOCS / page).read_text()
    level, start = re.search(rf'^(#+) {re.escape(heading)}\n', text, re.MULTILINE)[1], text.index(f' {heading}\n')
    return re.split(rf'^#{{1,{len(level)}}} ', text[start:], flags=re.MULTILINE)[0]


def tables(text):
    """The tables of a text, as lists of rows of cells without the two of the header."""
    lines = itertools.groupby(text.splitlines(), key=lambda line: line.startswith('|'))
    found = [[re.split(r'(?<!\\)\|', line)[1:-1] for line in group] for is_table, group in lines if is_table]
    return [[[cell.strip() for cell in row] for row in table[2:]] for table in found]


def write_examples(directory):
    """Writes the modules of docs/extending.md; returns the directory."""
    for name, code in EXAMPLES.items():
        (directory / name).write_text(code)
    return directory


EXAMPLES = dict(
    re.findall(r'^`(\w+\.\w+)`:\n\n```\w+\n(.*?)^```$', (DOCS / 'extending.md').read_text(), re.DOTALL | re.MULTILINE)
)


# ---------------------------------------------------------------- links


def anchors(path):
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r'^#+ (.*)$', plain(path.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@pytest.mark.parametrize('page', PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', plain(page.read_text())):
        if re.match(r'\w+:', target):
            continue
        file, _, anchor = target.partition('#')
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), target


def test_the_version_is_said_once_and_the_same_everywhere():
    version = zerosearch_jax.__version__
    assert f'version: {version}\n' in (ROOT / 'CITATION.cff').read_text()
    assert (ROOT / 'CHANGELOG.md').read_text().split('## ')[1].startswith(f'{version}\n')


def test_the_index_has_every_page():
    linked = set(re.findall(r'\]\((\w+\.md)', (DOCS / 'README.md').read_text()))
    assert linked == {path.name for path in DOCS.glob('*.md')} - {'README.md'}


@pytest.mark.parametrize('page', [page for page in PAGES if page.name != 'README.md' or page.parent != ROOT], ids=ids)
def test_a_page_opens_with_what_it_answers_and_for_whom(page):
    opening = ' '.join(page.read_text().split('\n\n')[1].split())
    assert opening.startswith('This page answers'), opening
    assert ' for ' in opening, opening


def test_the_site_has_every_page_once():
    nav = yaml.safe_load((DOCS / 'mkdocs.yml').read_text())['nav']
    listed = [path for entry in nav for value in entry.values() for path in leaves(value)]
    assert sorted(listed) == sorted(ids(path) for path in PAGES)


def leaves(value):
    return [value] if isinstance(value, str) else [path for entry in value for path in entry.values()]


# ---------------------------------------------------------------- words

# spellings that are not used in pages, docstrings, comments, messages and notebooks: the word of the field
OLD_WORDS = {
    r'(writing|writes?) (of )?(the )?prompts?': 'prefill',
    r'foretell(s|ing)?|foretold': 'plans, predicts',
    r'talks?': 'prints',
    r'hears?': 'gets the error',
    r'told to stop': 'SIGTERM',
    r'(between two|at (every|each)) looks?|looks? of the host': 'decode call',
    r'the outside (fails?|failed|is|says?)|calls? to the outside': 'a search failed; remote service',
    r'lets? go of': 'frees',
    r'born (sharded|in its shardings)': 'created sharded',
    r'expressly': 'explicitly',
    r'under way or done': 'running or finished',
    r'goes? on where (it|they)': 'continues',
    r'cut back to': 'truncated to',
    r'straight line': 'linear',
    r'for people': 'as text',
    r"(some|any)body's own|a user's own": "a user's",
    r'normalis(e|ed|es|ation)': 'normalize',
    r'time-outs?': 'timeout',
    r'beli(e|es|ed)': 'contradicts',
}


def old_words(text):
    """[(as it is written, what to write)] of the old words in a text."""
    text = ' '.join(re.sub(r'`[^`\n]*`', '', plain(text)).split())
    return [(found[0], new) for old, new in OLD_WORDS.items() for found in re.finditer(rf'\b({old})\b', text, re.I)]


def prose(path):
    """The text of a page, the comments and strings of a module, the cells of a notebook."""
    text = path.read_text()
    if path.suffix == '.ipynb':
        return '\n\n'.join(''.join(cell['source']) for cell in json.loads(text)['cells'])
    if path.suffix == '.md':
        return text
    code = (tokenize.NAME, tokenize.OP, tokenize.NUMBER)
    return ' '.join(t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in code)


def test_all_texts_have_the_words_of_the_field():
    folders = ('zerosearch_jax', 'launch', 'configs', 'colab', 'benchmarks')
    paths = [path for folder in folders for kind in ('py', 'ipynb') for path in (ROOT / folder).rglob(f'*.{kind}')]
    assert {ids(path): found for path in [*PAGES, *paths] if (found := old_words(prose(path)))} == {}


def test_an_old_word_is_found():
    assert old_words('A plan foretells that writing\nprompts is slow.') == [
        ('writing prompts', 'prefill'),
        ('foretells', 'plans, predicts'),
    ]
    assert old_words('`told to stop`\n```\ntalks\n```\n') == []


def test_comments_messages_and_cells_are_read(tmp_path):
    (tmp_path / 'a.py').write_text("talks = f'it {1} hears'  # born sharded\n")
    assert [word for word, _ in old_words(prose(tmp_path / 'a.py'))] == ['hears', 'born sharded']
    (tmp_path / 'a.ipynb').write_text('{"cells": [{"source": ["It ", "talks"]}]}')
    assert [word for word, _ in old_words(prose(tmp_path / 'a.ipynb'))] == ['talks']


# ---------------------------------------------------------------- commands


def commands():
    """{command as written: its arguments} of every `python -m …` of the pages, and of every `… --flag`."""
    found = {}
    for page in PAGES:
        text = page.read_text().replace('\\\n', ' ')
        written = re.findall(r'python -m ((?:launch|benchmarks|zerosearch_jax|pytest)\b[^`\n]*)', text)
        written += re.findall(r'`… (launch\.[^`]+)`', text)
        written += [f'launch.train {rest}' for rest in re.findall(r'`… (--config configs[^`]+)`', text)]
        quickstart = 'launch.train --config configs/quickstart.py'
        written += [f'{quickstart} {rest}' for rest in re.findall(r'`… (--(?!config )[^`]+)`', text)]
        for command in written:
            whole = command.split(' #')[0].replace('--config …', '--config configs/quickstart.py').rstrip()
            whole = whole.removesuffix("'") if whole.count("'") % 2 else whole  # the end of a string around it
            words = shlex.split(re.sub(r'=[ni]\b', '=1', re.sub(r'[][]', '', whole)))
            found[command] = list(itertools.takewhile(lambda word: word not in ('…', '<', '>', '&&'), words))
    return found


COMMANDS = commands()
LAUNCHED = {name: words for name, words in COMMANDS.items() if words[0].startswith('launch.')}

# parses every command in a fork of a process that has imported jax already; prints [command, error] of those that fail
PARSE = """
import importlib, json, os, sys
from absl import flags
from zerosearch_jax.study import sweep
from zerosearch_jax.tools import config_reference
parsers = {name: module.parse for name, module in config_reference.PROGRAMS.items()}
parsers |= {'plan': parsers['train'], 'sweep': sweep.parse}

def parse(words):
    sys.argv[:] = words  # where ml_collections looks for overrides
    importlib.import_module('launch.common'), importlib.import_module(words[0])
    rest = flags.FLAGS(words)
    if 'config' in flags.FLAGS and len(words) > 1:
        assert len(rest) == 1 or words[0] in ('launch.ask', 'launch.evaluate'), rest  # questions, a run
        parsers[words[0].removeprefix('launch.')](flags.FLAGS.config)

for command, words in json.loads(sys.argv[1]).items():
    if not os.fork():
        try:
            parse(words)
        except BaseException as error:
            print(json.dumps([command, repr(error)]), flush=True)
        os._exit(0)
    os.wait()
"""


def failing(given, *paths):
    """[command, error] of those whose flags, configuration or schema do not take what is given."""
    path = os.pathsep.join([*map(str, paths), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, '-c', PARSE, json.dumps(given)],
        cwd=ROOT,
        env=ENVIRONMENT | {'PYTHONPATH': path},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_commands_parse(tmp_path):
    assert failing(LAUNCHED, write_examples(tmp_path)) == []


def test_a_command_that_is_wrong_is_found():
    wrong = (
        '--config=configs/tiny.py --config.rl.step=1',
        '--config=configs/nope.py',
        '--config=configs/tiny.py --x=1',
    )
    given = {'right': 'launch.train --config=configs/tiny.py'} | {text: f'launch.train {text}' for text in wrong}
    told = failing({name: text.split() for name, text in given.items()})
    assert [command for command, _ in told] == list(wrong)


def test_modules_that_commands_name_exist():
    assert len(LAUNCHED) > 40
    for words in COMMANDS.values():
        assert words[0].endswith('.NAME') or find_spec(words[0].rstrip('.:;,')), words
    mentioned = {name for page in PAGES for name in re.findall(r'launch\.([a-z_]+)', page.read_text())}
    assert {path.stem for path in (ROOT / 'launch').glob('*.py')} >= mentioned


# ---------------------------------------------------------------- configuration


def test_the_configuration_page_is_what_its_command_makes():
    command = 'python -m zerosearch_jax.tools.config_reference > docs/configuration.md'
    assert (DOCS / 'configuration.md').read_text() == config_reference.page(), f'run {command}'


def test_comments_are_those_above_and_beside_a_field():
    found = config_reference.comments(Commented)
    assert found == {'plain': '', 'beside': 'b', 'above': 'one two three', 'within': 'w'}


@dataclasses.dataclass
class Commented:
    """Has comments, and none here: # no."""

    plain: str = '# no comment'
    beside: int = 0  # b
    # one
    # two
    above: int = 0  # three
    within: str = 'a default that is so long that it does not fit on the line of the field, with its comment'  # w


# ---------------------------------------------------------------- API


def test_the_api_page_is_what_its_command_makes():
    command = 'python -m zerosearch_jax.tools.api_reference > docs/api.md'
    assert (DOCS / 'api.md').read_text() == api_reference.page(), f'run {command}'


def test_an_interface_has_signatures_docstrings_and_fields_and_no_bodies():
    assert api_reference.interface('simulator.curriculum', ['is_noisy']).splitlines() == [
        'def is_noisy(uniform: float, p: float) -> bool:',
        f'    """{curriculum.is_noisy.__doc__}"""',
    ]
    fields = api_reference.interface('search.search', ['Document'])
    assert '    title: str' in fields and 'def as_text(self) -> str:' in fields and 'return' not in fields
    with pytest.raises(KeyError):
        api_reference.interface('search.search', ['Nothing'])


# ---------------------------------------------------------------- differences


def test_every_switch_of_the_paper_form_is_documented_with_both_values():
    [table, *_] = tables(section('differences.md', 'Differences from the published system'))
    fixed = qwen2_5_3b.get_config()
    assert [row[0] for row in table] == [f'D{i}' for i in range(1, 15)]
    told = {}
    for row in table:
        switches = re.findall(r'`(\w+)\.(\w+)=([^`]+)`', row[2])
        assert switches or row[2] == 'not reproduced', row[0]
        values = [ast.literal_eval(value) for value in re.findall(r'`([^`]+)`', row[3])] if switches else []
        for (group, name, value), default in zip(switches, values, strict=True):
            told[group, name] = ast.literal_eval(value)
            assert fixed[group][name] == default, (group, name)
    built = config.parse(qwen2_5_3b.get_config('paper'))
    for (group, name), value in told.items():
        assert value == getattr(getattr(built, group), name) or (group, name) == ('reward', 'answer')
    switches = {(group, name) for group, values in common.PAPER.items() for name in values}
    assert switches <= told.keys()


# ---------------------------------------------------------------- method


def test_the_values_of_the_curriculum_are_those_of_the_code():
    [table] = tables(section('method.md', 'The curriculum'))
    for start, end, *values, mean, _ in table:
        made = Curriculum(start=float(start), end=float(end))
        got = [noise_probability(made, i, 4) for i in (1, 2, 3, 4)]
        got.append(noise_probability(dataclasses.replace(made, kind='matched'), 1, 10_000))
        assert [f'{value:.3f}' for value in got] == [*values, mean]


def test_the_request_to_a_simulator_is_the_template_of_the_code():
    [shown] = re.findall(r'^```\n(.*?)^```$', section('method.md', 'The simulated search'), re.DOTALL | re.MULTILINE)
    template = prompts.SIMULATOR_TEMPLATES['told']
    assert shown.split() == template.useful.replace('{knowledge}', template.knowledge).split()


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        text = page.read_text().partition('## Old paths')[0]
        for name in re.findall(r'`((?:\w+/)+\w+\.\w{2,4})`', text):
            where = [ROOT / name, ROOT / 'zerosearch_jax' / name, DOCS / name]
            if name.split('/')[0] not in ('runs', 'verl', 'llm_agent', 'evaluation', 'corpus', 'questions'):
                assert any(path.exists() for path in where), f'{page.name}: {name}'


# ---------------------------------------------------------------- the map


def test_the_architecture_names_every_module_and_the_code_what_it_names():
    text = (DOCS / 'architecture.md').read_text()
    parts = text.split('```')[1]
    for path in (ROOT / 'zerosearch_jax').rglob('*.py'):
        if path.stem != '__init__':
            part = path.parent.name
            lines = [line for line in parts.splitlines() if f'{part}/' in line] if part != 'zerosearch_jax' else [parts]
            assert any(re.search(rf'\b{path.stem}\b', line) for line in lines), path
    doors = section('architecture.md', 'One question, from its row to the weight update')
    named = re.findall(r'`(\w+/\w+\.py)`((?: `[\w.]+(?:\(\w*\))?`,?)*)', doors)
    assert len(named) >= 15
    for path, symbols in named:
        code = (ROOT / 'zerosearch_jax' / path).read_text()
        for symbol in re.findall(r'`([\w.]+)', symbols):
            assert re.search(rf'\b(def|class) {symbol.split(".")[-1]}\b', code), (path, symbol)
