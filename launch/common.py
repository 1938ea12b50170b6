"""What the command lines share."""

import contextlib
import functools
import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from zerosearch_jax import settings

_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', 'For several processes: HOST:PORT of the first, or "auto" with SLURM, MPI, GKE and TPU slices.'
)
_PROCESSES = flags.DEFINE_integer('processes', 1, 'Number of processes, if --coordinator is HOST:PORT.')
_PROCESS = flags.DEFINE_integer('process', 0, 'Number of this process, from 0.')


def run(main, *, arguments: bool = False):
    """Parses the flags, and other arguments if `arguments`, and calls `main(argv)`; exit code 2 on a mistake."""
    app.run(main, flags_parser=functools.partial(_parse, arguments=arguments))


def _parse(argv: list[str], arguments: bool) -> list[str]:
    try:
        rest = flags.FLAGS([re.sub(r'^(--?config=)?(configs/[\w/]+\.py)', _find_config, argument) for argument in argv])
        if len(rest) > 1 and not arguments:
            raise flags.Error(f'unexpected argument {rest[1]!r}; flags look like --config.rl.steps=3')
        if flags.FLAGS['config'].value is None:
            raise flags.Error('which experiment? for example --config configs/quickstart.py')
        if not os.path.isfile(path := config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]):
            raise flags.Error(f'--config {path}: no such file; experiments are the files of configs/')
        return rest
    except (flags.Error, ValueError, OSError, AttributeError, KeyError, SyntaxError) as error:
        message = _flag_error(error, argv)
        if os.environ.get('ZEROSEARCH_DEBUG') or not message:
            raise
        _print_error(message)
        sys.exit(2)


def _find_config(given: re.Match) -> str:
    """The argument with the path of configs/ beside this package, which may be installed, if it is not a file here."""
    path = given[2] if os.path.isfile(given[2]) else pathlib.Path(__file__).parents[1] / given[2]
    return f'{given[1] or ""}{path}'


def _flag_error(error: Exception, argv: list[str]) -> str:
    """The message for an error in parsing flags; '' if the error is a bug."""
    if not isinstance(error, AttributeError | KeyError):
        return str(error)
    # ml_collections raises KeyError, maybe within another error: 'NAME'\nDid you mean "OTHER" instead of "NAME"?
    cause = error if isinstance(error, KeyError) else next(iter(error.args), None)
    text = str(cause.args[0]) if isinstance(cause, KeyError) else ''
    if unknown := re.match(r"('.*')(?:\nDid you mean \"(.*)\" instead)?", text):
        hint = f'; did you mean {unknown[2]!r}?' if unknown[2] else ''
        return f'the configuration has no field {unknown[1]}{hint}'
    if text and any(argument.endswith(f':{text}') for argument in argv):
        return f'the configuration has no preset {text!r}; its docstring lists them'
    return ''


def _print_error(message: str):
    line = ' '.join(settings.redacted(message).split())  # without keys; control characters are printed as codes
    print('error:', re.sub(r'[\x00-\x1f\x7f-\x9f]', lambda c: repr(c[0])[1:-1], line), file=sys.stderr)


@contextlib.contextmanager
def one_line_errors():
    """Turns expected errors into one line and exit code 1 (Ctrl-C: 130); ZEROSEARCH_DEBUG=1 shows the traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get('ZEROSEARCH_DEBUG'):
            raise
        _print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def quiet():
    """Hides the log messages of libraries."""
    if not os.environ.get('ZEROSEARCH_DEBUG'):
        logging.set_verbosity(logging.WARNING)
        os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')


def set_up_jax():
    """Joins the other processes, if there are any; keeps compiled programs between runs."""
    import jax

    from zerosearch_jax import progress, sharding
    from zerosearch_jax.run import memory
    from zerosearch_jax.weights import download

    quiet()
    memory.keep()
    sharding.join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if _COORDINATOR.value and jax.process_index():
        progress.mute()
    if jax.default_backend() == 'cpu' and jax.device_count() > 1:
        # cached programs of several CPU devices may order their collectives differently on each, and hang
        jax.config.update('jax_enable_compilation_cache', False)
    elif not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(download.cache_dir() / 'compiled'))


def given() -> set[str]:
    """The fields of the configuration that flags set, as dotted names."""
    return set(config_flags.get_override_values(flags.FLAGS['config']))


def default_workdir() -> str:
    """runs/NAME for configs/NAME.py, runs/NAME_PRESET for configs/NAME.py:PRESET."""
    path, _, preset = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    return str(pathlib.Path('runs') / '_'.join(filter(None, [pathlib.Path(path).stem, preset])))
