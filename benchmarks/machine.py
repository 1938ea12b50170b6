"""The name of what this machine computes with, and programs that are run on it; only the standard library."""

import contextlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import threading
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
# memory in pages of 2 MiB: without, a tenth of a large update is spent on page faults
ENVIRONMENT = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1', **os.environ, 'HF_HUB_OFFLINE': '1'}


def device() -> str:
    """The first GPU, by the name that JAX gives it; where there is none, the processor."""
    asked = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
    with contextlib.suppress(OSError, subprocess.CalledProcessError, IndexError):
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    return cpu()


def cpu() -> str:
    info = pathlib.Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}
    if 'model name' not in said:
        return platform.processor() or platform.machine()
    # a virtual machine may hide which processor it has behind one name for several generations
    return f'{said["model name"]}, family {said.get("cpu family", "?")} model {said.get("model", "?")}'


def figures(command: list[str], *, seconds: float = threading.TIMEOUT_MAX, log=None, **environment) -> Iterator[dict]:
    """The JSON lines that a program prints, as it prints them.

    Args:
      command: run in the repository.
      seconds: after which it is killed, with all that it started.
      log: file that receives its standard error; None: our own.
      environment: variables beside ours.

    Raises:
      SystemExit: it failed, or was killed; with one line.
    """
    options = {'cwd': ROOT, 'env': ENVIRONMENT | environment, 'text': True, 'start_new_session': True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, **options) as process:
        timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith('{"name"'):
                    yield json.loads(line)
            if process.wait():
                raise SystemExit(f'{command[2]} ended with {process.returncode}')
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
