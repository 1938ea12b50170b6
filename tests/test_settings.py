import dataclasses
import json
from typing import Any, Literal, Optional

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch_jax import settings


@dataclasses.dataclass(frozen=True)
class RL:
    algorithm: Literal['ppo', 'grpo', 'reinforce']
    clip: float = 0.2
    group: int = 4
    shuffle: bool = False
    target_kl: float | None = None
    name: Optional[str] = None  # noqa: UP045  (both spellings must work)
    betas: tuple[float, ...] = (0.9, 0.95)
    mesh: tuple[int, int] = (1, 1)
    rates: 'list[float]' = dataclasses.field(default_factory=list)
    derived: int = dataclasses.field(default=7, init=False)

    def __post_init__(self):
        if self.clip > 1:
            raise ValueError(f'clip must be at most 1, got {self.clip}')


@dataclasses.dataclass(frozen=True)
class Data:
    path: str = 'rows.jsonl'


SCHEMA = {'seed': int, 'lr': float, 'note': str | None, 'rl': RL, 'data': Data}


def build(**values):
    return settings.section(RL, {'algorithm': 'grpo', **values}, 'config.rl')


def test_defaults_and_conversions():
    assert build() == RL('grpo')
    made = build(clip=1, target_kl=0, betas=[1, 0.5], mesh=[2, 4], rates=(1,), name='x')
    assert made == RL('grpo', 1.0, target_kl=0.0, betas=(1.0, 0.5), mesh=(2, 4), rates=[1.0], name='x')
    assert type(made.clip) is type(made.target_kl) is type(made.betas[0]) is type(made.rates[0]) is float
    assert type(made.betas) is tuple and type(made.rates) is list


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'clip': 'x'}, "config.rl.clip must be float, got 'x' (str)"),
        ({'clip': True}, 'config.rl.clip must be float, got True (bool)'),
        ({'clip': None}, 'config.rl.clip must be float, got None (NoneType)'),
        ({'group': 4.0}, 'config.rl.group must be int, got 4.0 (float)'),
        ({'group': False}, 'config.rl.group must be int, got False (bool)'),
        ({'shuffle': 1}, 'config.rl.shuffle must be bool, got 1 (int)'),
        ({'target_kl': 'x'}, "config.rl.target_kl must be float | None, got 'x' (str)"),
        ({'name': 1}, 'config.rl.name must be str | None, got 1 (int)'),
        ({'algorithm': 'grp'}, "config.rl.algorithm must be 'ppo' | 'grpo' | 'reinforce', got 'grp' (str)"),
        ({'betas': ['x']}, "config.rl.betas must be tuple[float, ...], got ['x'] (list)"),
        ({'betas': 'ab'}, "config.rl.betas must be tuple[float, ...], got 'ab' (str)"),
        ({'mesh': [1, 2, 3]}, 'config.rl.mesh must be tuple[int, int], got [1, 2, 3] (list)'),
        ({'algoritm': 'ppo'}, "config.rl has no field 'algoritm'; did you mean 'algorithm'?"),
        ({'derived': 1}, "config.rl has no field 'derived'; it has algorithm, clip, group, shuffle, target_kl, "
                         'name, betas, mesh, rates'),
        ({'clip': -1}, 'config.rl.clip must not be negative, got -1.0'),
        ({'clip': 2}, 'config.rl: clip must be at most 1, got 2.0'),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(values, message):
    with pytest.raises(ValueError) as error:
        build(**values)
    assert str(error.value) == message


def test_missing_required_key():
    with pytest.raises(ValueError, match=r"^config.rl.algorithm is missing; it must be 'ppo' \| 'grpo'"):
        settings.section(RL, {}, 'config.rl')


def test_unsupported_hints_are_loud():
    @dataclasses.dataclass
    class Odd:
        anything: Any = None

    with pytest.raises(TypeError, match='do not support'):
        settings.section(Odd, {'anything': 1}, 'config.odd')


def test_unions_prefer_the_exact_type():
    assert type(settings.resolve({'x': 3}, {'x': float | int})['x']) is int
    assert type(settings.resolve({'x': 3}, {'x': float | str})['x']) is float
    with pytest.raises(ValueError, match=r'config\.x must be 1'):
        settings.resolve({'x': True}, {'x': Literal[1]})


def config():
    made = ml_collections.ConfigDict(
        {'seed': 1, 'lr': 1, 'note': None, 'rl': {'algorithm': 'ppo', 'mesh': (1, 2), 'betas': [0.5]}}
    )
    made.rl.group = made.get_ref('seed') * 8
    return made.lock()


def test_resolve_a_locked_config():
    resolved = settings.resolve(config(), SCHEMA)
    assert resolved == {
        'seed': 1,
        'lr': 1.0,
        'note': None,
        'rl': RL('ppo', group=8, mesh=(1, 2), betas=(0.5,)),
        'data': Data(),
    }
    assert list(resolved) == list(SCHEMA)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'dat': {}}, "config has no field 'dat'; did you mean 'data'?"),
        ({'zzz': 1}, "config has no field 'zzz'; it has seed, lr, note, rl, data"),
        ({'seed': 'x'}, "config.seed must be int, got 'x' (str)"),
        ({'data': 3}, 'config.data must be a section, got 3 (int)'),
        ({'data': {'pat': 'x'}}, "config.data has no field 'pat'; did you mean 'path'?"),
    ],
)
def test_resolve_errors(change, message):
    with pytest.raises(ValueError) as error:
        settings.resolve(ml_collections.ConfigDict(config().to_dict() | change), SCHEMA)
    assert str(error.value) == message


def test_scalars_of_the_schema_are_required():
    with pytest.raises(ValueError, match=r'^config\.seed is missing; it must be int$'):
        settings.resolve({}, SCHEMA)


def test_to_json_resolves_references_and_sorts():
    text = settings.to_json(config())
    assert json.loads(text) == {
        'seed': 1,
        'lr': 1,
        'note': None,
        'rl': {'algorithm': 'ppo', 'mesh': [1, 2], 'betas': [0.5], 'group': 8},
    }
    assert text.splitlines()[:3] == ['{', '  "lr": 1,', '  "note": null,']
    assert json.loads(settings.to_json(settings.resolve(config(), SCHEMA)))['rl']['group'] == 8


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)


@given(scalars, st.sampled_from([bool, int, float, str]))
def test_only_the_declared_type_passes(value, kind):
    fits = type(value) is kind or (kind is float and type(value) is int)
    for hint, expected in ((kind, fits), (kind | None, fits or value is None)):
        try:
            out = settings.resolve({'x': value}, {'x': hint})['x']
        except ValueError:
            assert not expected
        else:
            assert expected and (out is None or type(out) is kind) and out == (kind(value) if fits else value)


@pytest.mark.parametrize(
    ('text', 'says'),
    [('', 'is not JSON'), ('{"a": ', 'is not JSON'), ('<!DOCTYPE html>', 'is not JSON'), ('[1]', 'not a list')],
)
def test_a_file_that_holds_no_json_object_is_named(text, says, tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=f'config.json.*{says}'):
        settings.read_json(path)


def test_json_nested_too_deep_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match='nested too deep'):
        settings.parse_json('[' * 100_000)
    (tmp_path / 'deep.json').write_text('[' * 100_000)
    with pytest.raises(ValueError, match=r'deep.json.*nested too deep'):
        settings.read_json(tmp_path / 'deep.json')


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('http://h/x?api_key=abc&k=3', 'http://h/x?api_key=***&k=3'),
        ('http://h/?q=1&access_token=a%20b', 'http://h/?q=1&access_token=***'),
        ('https://me:pa@ss@h:80/x', 'https://***@h:80/x'),
        ('{"u": "http://h?key=abc", "v": "KEY=1"}', '{"u": "http://h?key=***", "v": "KEY=1"}'),
        ('?X-Amz-Signature=1&secret=2&apikey=3&token=4', '?X-Amz-Signature=***&secret=***&apikey=***&token=***'),
        ('http://h/?keyword=cat&monkey=1', 'http://h/?keyword=cat&monkey=1'),
        ('http://h/?accessToken=1&subscriptionKey=2&code=3', 'http://h/?accessToken=***&subscriptionKey=***&code=***'),
        ('http://h/#token=1', 'http://h/#token=***'),
        ('http://h/?passwd=1&pwd=2&credential=3', 'http://h/?passwd=***&pwd=***&credential=***'),
        ('Authorization: Bearer abc.defg', 'Authorization: Bearer ***'),
        ('Authorization: Basic dXNlcjpwYXNz', 'Authorization: Basic ***'),
        ('basic encyclopedia passages', 'basic encyclopedia passages'),
        ('mail me@h.org about https://h/a', 'mail me@h.org about https://h/a'),
    ],
)
def test_keys_in_addresses_are_redacted(text, shown):
    assert settings.redacted(text) == shown


def test_the_secrets_of_an_address_are_its_password_and_keys():
    assert settings.secrets('http://me:p%40ss@host/x?api_key=k1&q=2') == ['k1', 'p%40ss', 'k1', 'p@ss']
    assert settings.secrets('http://me@host/x') == settings.secrets('http://me:@host') == []


def test_a_key_in_engine_url_is_not_in_config_json_and_may_change_on_resume():
    old, new = ({'engine': {'url': f'http://h/?api_key={key}'}} for key in ('one', 'two'))
    assert 'one' not in settings.to_json(old)
    written = json.loads(settings.to_json(new))
    assert settings.changes(json.loads(settings.to_json(old)), written) == {}
    assert settings.changes(old, written) == {}  # one that was written before
    (line,) = settings.changes(old, {'engine': {'url': 'x'}}).values()
    assert line.startswith('engine.url = "x" (it was "http') and line.count('***') == 1
