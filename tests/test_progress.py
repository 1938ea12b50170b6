"""Bars on a terminal, plain lines elsewhere, nothing from a process that is muted."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from helpers import ENVIRONMENT, ROOT

from zerosearch_jax import progress

CODE = """
import sys
from zerosearch_jax import progress
if 'mute' in sys.argv: progress.mute()
print(progress.enabled())
for i in progress.track(range(3), 'counting', 'sheep'): progress.log(f'line {i}')
"""


def run(*arguments, stderr, code=CODE):
    command = [sys.executable, '-c', code, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True
    )


def on_terminal(*arguments, code=CODE):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    out = run(*arguments, stderr=follower, code=code).stdout
    os.close(follower)
    told = b''
    try:
        while part := os.read(leader, 4096):
            told += part
    except OSError:  # nothing more, and nobody writes to it
        os.close(leader)
    return out.strip(), told.decode()


def test_a_terminal_shows_a_bar_and_the_lines_above_it():
    shown, told = on_terminal()
    assert shown == 'True' and 'counting' in told and 'sheep' in told and '\r' in told.replace('\r\n', '\n')
    assert all(f'line {i}\r\n' in told for i in range(3))


def test_a_file_gets_the_lines_alone():
    done = run(stderr=subprocess.PIPE)
    assert (done.stdout, done.stderr) == ('False\n', 'line 0\nline 1\nline 2\n')


JOB = """
import time
from zerosearch_jax import progress
progress.REPEATED = 0.05
with progress.job(10, initial=2) as job:
    progress.phase('opening')
    with progress.bar(4, 'episodes', share=4) as bar:
        for _ in range(4): time.sleep(0.1); bar.update()
    job.show(figures='reward 0.5')
    for _ in progress.track(range(2), 'updates'): time.sleep(0.1)
    job.reach(10)
progress.log('done')
"""


def test_a_job_has_one_bar_with_its_phases_and_figures_and_the_time_left():
    told = on_terminal(code=JOB)[1]
    shown = [line for line in told.replace('\n', '\r').split('\r') if line.strip()]
    assert any(line.startswith('opening  20%') for line in shown), shown
    assert any(re.match(r'episodes 2/4  40% .* about \d s left$', line) for line in shown), shown
    assert any(line.startswith('updates') and 'reward 0.5' in line for line in shown), shown
    assert '100%' in shown[-2] and shown[-1] == 'done'


def test_where_there_is_no_terminal_a_job_prints_lines_that_no_file_keeps():
    told = run(stderr=subprocess.PIPE, code=JOB).stderr.splitlines()
    assert any(line.startswith('episodes 2/4  40% done  about ') for line in told), told
    assert told[-1] == 'done'


def test_what_is_logged_is_kept_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, '_log', None)
    progress.log('before')
    with progress.kept(tmp_path / 'log.txt'):
        progress.log('São Paulo \ud800')
        progress.log('after')
        monkeypatch.setattr(progress, '_muted', True)
        progress.log('not of this process')
        monkeypatch.setattr(progress, '_muted', False)
    progress.log('not of this run')
    assert (tmp_path / 'log.txt').read_text(encoding='utf-8') == 'São Paulo ?\nafter\n'


def test_a_muted_process_says_nothing():
    assert on_terminal('mute') == ('False', '')
    assert run('mute', stderr=subprocess.PIPE).stderr == ''
