"""Prints command number N (from 1) of the README's first section, with its .venv moved to ZEROSEARCH_FRESH_VENV."""

import os
import pathlib
import re
import sys

text = pathlib.Path(__file__).parents[1].joinpath('README.md').read_text(encoding='utf-8')
blocks = re.findall(r'```bash\n(.*?)```', text, re.DOTALL)
print(blocks[int(sys.argv[1]) - 1].replace('.venv', os.environ.get('ZEROSEARCH_FRESH_VENV', '.venv')))
