"""Prints an episode while it runs, on a terminal or to a file: coloured by block, without control characters."""

import codecs
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind

STYLES = {'think': '36', 'search': '33', 'tool_call': '33', 'information': '2', 'answer': '1;32', 'question': '1'}
_TAG = re.compile(r'(</?(?:think|search|tool_call|answer)>)')
_BEGUN = re.compile(r'<[a-z_/]{0,10}$')  # the possible beginning of a tag
_REORDERING = '\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069'


def harmless(text: str) -> str:
    """Text with control characters, including escape sequences, as their codes; line feeds and tabs stay."""
    return ''.join(c.encode('unicode_escape').decode() if _acts(c) else c for c in text)


def _acts(c: str) -> bool:
    """Whether a terminal does something else than print the character."""
    return c not in '\n\t' and (unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') or c in _REORDERING)


class Screen:
    """Shows one episode after the other.

    Args:
      out: where to print; with colours if it is a terminal and NO_COLOR is not set.
      tokenizer: of the tokens.
    """

    def __init__(self, out: TextIO, tokenizer: Tokenizer):
        self._out, self._tokenizer = out, tokenizer
        self._coloured = out.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb'
        self._begin(None)
        self._at_start = True

    def _begin(self, kind: Kind | None):
        self._kind, self._block, self._held = kind, '', ''
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def write(self, kind: Kind, tokens: Sequence[int]):
        """Prints new text of the episode, except for the possible beginning of a tag at its end."""
        if kind is not self._kind:
            self._finish(kind)
        text = self._held + self._decoder.decode(self._tokenizer.decode_bytes(tokens))
        if kind is Kind.OBSERVATION:
            self.put(text, 'information')
            return
        begun = _BEGUN.search(text)
        end = begun.start() if begun else len(text)
        self._show(text[:end])
        self._held = text[end:]

    def end(self):
        """Prints the rest of the episode, and ends the line."""
        self._finish(None)
        if not self._at_start:
            self.put('\n')

    def _finish(self, following: Kind | None):
        self.put(self._held + self._decoder.decode(b'', final=True), self._block)
        self._begin(following)

    def _show(self, text: str):
        for place, piece in enumerate(_TAG.split(text)):
            if place % 2 == 0:
                self.put(piece, self._block)
                continue
            name = piece.strip('</>')
            self.put(piece, name)
            self._block = '' if piece.startswith('</') else name

    def put(self, text: str, block: str = ''):
        """Prints text in the style of a block."""
        if not text:
            return
        shown, style = harmless(text), STYLES.get(block)
        self._out.write(f'\x1b[{style}m{shown}\x1b[0m' if style and self._coloured else shown)
        self._out.flush()
        self._at_start = shown.endswith('\n')
