"""What the command lines share."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

from absl import app


def no_arguments(argv):
    """Refuses positional arguments, which are usually a flag with its dashes missing."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}; flags look like --config.rl.steps=3')


@contextlib.contextmanager
def one_line_errors():
    """Turns expected errors into one line and exit code 1 (Ctrl-C: 130); ZEROSEARCH_DEBUG=1 shows the traceback."""
    try:
        yield
    except (ValueError, OSError, AttributeError) as error:
        if os.environ.get('ZEROSEARCH_DEBUG') or (isinstance(error, AttributeError) and 'config' not in str(error)):
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def set_up_jax():
    """Keeps compiled programs between runs, in the project's cache directory, and libraries' chatter off the screen."""
    import jax
    from absl import logging

    from zerosearch_jax.models import download

    if not os.environ.get('ZEROSEARCH_DEBUG'):
        logging.set_verbosity(logging.WARNING)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(download.cache_dir() / 'compiled'))


def default_workdir() -> str:
    """runs/NAME for configs/NAME.py, runs/NAME_PRESET for configs/NAME.py:PRESET."""
    from absl import flags
    from ml_collections import config_flags

    path, _, preset = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    return str(pathlib.Path('runs') / '_'.join(filter(None, [pathlib.Path(path).stem, preset])))
