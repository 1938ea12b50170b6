"""Uploads an export to the Hugging Face hub, or to a server of its protocol at $HF_ENDPOINT; the key is $HF_TOKEN."""

import os
import pathlib
import re

from zerosearch_jax import progress, settings
from zerosearch_jax.search import outside

TOKEN = 'HF_TOKEN'  # the environment variable; the key is in no configuration, file or log
HUB = 'https://huggingface.co'
_REPOSITORY = re.compile(r'\w[\w.-]*/\w[\w.-]*', re.ASCII)
# the files of an export; other files of the directory are not uploaded
_FILES = ('README.md', 'curves.png', '*config.json', 'tokenizer*', 'chat_template.jinja', '*.safetensors*')


def check(repository: str, dry_run: bool):
    """Checks what can be known before anything is exported; raises ValueError."""
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f'--push={repository}: give OWNER/NAME, the repository on the hub')
    if not (dry_run or _token()):
        raise ValueError(
            f'--push needs a key that may write, in the environment variable {TOKEN}; --dry-run needs none'
        )


def push(directory: pathlib.Path, repository: str, dry_run: bool = False) -> str:
    """Uploads an export in one commit; a repository that does not exist is created as private.

    Args:
      directory: what `export` wrote.
      repository: OWNER/NAME.
      dry_run: nothing is sent.

    Returns:
      One line for each file that was, or would be, uploaded, and where to.

    Raises:
      ValueError: as `check`.
      OSError: the hub refused the upload.
    """
    check(repository, dry_run)
    endpoint = os.environ.get('HF_ENDPOINT', '').rstrip('/') or HUB
    files = sorted({path for pattern in _FILES for path in directory.glob(pattern) if path.is_file()})
    if not dry_run:
        progress.phase(f'uploading {directory} to {repository}')
        try:
            _send(files, repository, endpoint)
        except Exception as error:  # the hub's client raises a dozen kinds of errors; the user needs the message only
            reason = outside.safe_message(str(error) or type(error).__name__, _token())
            where = settings.redacted(f'{endpoint}/{repository}')
            raise OSError(f'{where} refused the upload ({reason}); may the key in {TOKEN} write there?') from None
    verb = 'would upload' if dry_run else 'uploaded'
    sizes = [f'  {path.name}  {path.stat().st_size / 1e6:,.3f} MB' for path in files]
    return settings.redacted('\n'.join([f'{verb} to {endpoint}/{repository}:', *sizes]))


def _token() -> str:
    return os.environ.get(TOKEN, '').strip()


def _send(files: list[pathlib.Path], repository: str, endpoint: str):
    import huggingface_hub

    hub = huggingface_hub.HfApi(endpoint, token=_token())
    hub.create_repo(repository, private=True, exist_ok=True)
    added = [huggingface_hub.CommitOperationAdd(path.name, path) for path in files]
    hub.create_commit(repository, added, commit_message='Weights and model card of zerosearch_jax')
