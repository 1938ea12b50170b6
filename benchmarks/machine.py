"""The name of this machine's processor; only the standard library."""

import pathlib
import platform


def cpu() -> str:
    info = pathlib.Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    found = next((line.split(': ')[1] for line in lines if line.startswith('model name')), '')
    return found or platform.processor() or platform.machine()
