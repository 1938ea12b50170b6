"""Text to token ids and back, for BPE over bytes (Llama 3, Qwen, SmolLM), or over characters and else bytes (Gemma).

Two backends share one vocabulary. The model's own knows its added tokens (`<|im_end|>`, Qwen3's `<think>`) and is used
for chat templates only. The plain one does not know them and encodes all other text, so that text can never become a
control token, whatever it spells (contract C11).
"""

import codecs
import datetime
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from zerosearch_jax import settings
from zerosearch_jax.text import protocol, tokenizer_gguf, vocabulary

# These end a generation if the tokenizer has them, besides the tokens that it declares itself.
END_TOKENS = ('<|im_end|>', '<|eot_id|>', '<|eom_id|>', '<|endoftext|>', '<|end_of_text|>', '<end_of_turn>')

# The date that templates write: a prompt has to be the same on every day. Templates use `date_string` or call
# `strftime_now`; transformers passes no function of ours to them, so a macro hides that function.
_DAY = datetime.datetime(2024, 7, 26)
DATE = _DAY.strftime('%d %b %Y')
_REPLACED = (f"|replace('%{code}', '{_DAY.strftime(f'%{code}')}')" for code in ('-d', '-m', *'aAbBdeHIjmMpSyYfF'))
_STRFTIME = '{% macro strftime_now(format) %}{{ format' + ''.join(_REPLACED) + ' }}{% endmacro %}\n'

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Tokenizer:
    """A fast Hugging Face tokenizer that never turns text into control tokens.

    Attributes:
      vocab_size: ids are below it; the embedding of a model may have more rows, which are unused.
      eos_ids: tokens that end a generation, the tokenizer's own first.
      pad_id: the padding id; it may equal an end-of-sequence id, so masks never come from it.
      token_bytes: bytes of each id; b'' for control tokens and unused ids. The tags of the protocol are text, even
        if the tokenizer declares them special.
      prefix: ids at the beginning of any raw text (a beginning-of-sequence token, or nothing).
      has_chat_template: whether `chat` has a template to render.
    """

    def __init__(self, tokenizer, extra_eos_ids: Iterable[int] = ()):
        """Wraps a transformers.PreTrainedTokenizerFast.

        Raises:
          ValueError: not a BPE tokenizer that can spell any text.
        """
        if not getattr(tokenizer, 'is_fast', False):
            raise ValueError(f'{type(tokenizer).__name__}: a fast tokenizer (tokenizer.json) is needed')
        self.hf = tokenizer
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        fallback = vocabulary.falls_back_to_bytes(spec)
        control = [t for t in spec['added_tokens'] if not (fallback and vocabulary.is_text(t))]
        added = {token['content']: token['id'] for token in control}
        special = {token['content'] for token in spec['added_tokens'] if token['special']}
        special = {content for content in special if not protocol.TOOL_CALL.tag.fullmatch(content.strip())}
        self.token_bytes = vocabulary.token_bytes(spec, added, special, fallback)
        self.vocab_size = len(self.token_bytes)
        ends = [tokenizer.eos_token_id, *extra_eos_ids, *(added.get(token) for token in END_TOKENS)]
        self.eos_ids = tuple(dict.fromkeys(i for i in ends if i is not None and i < self.vocab_size))
        pads = [tokenizer.pad_token_id, *self.eos_ids, 0]
        self.pad_id = next(i for i in pads if i is not None)
        self.prefix = _prefix(tokenizer)
        self.has_chat_template = tokenizer.chat_template is not None
        self._added = added
        self._special = {i: content.encode() for content, i in added.items() if content in special}
        longest_first = sorted(added, key=len, reverse=True)
        self._added_pattern = re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')') if added else None
        self._plain = vocabulary.plain_backend(spec, added)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> 'Tokenizer':
        """The tokenizer of a Hugging Face directory or a GGUF file.

        Raises:
          FileNotFoundError: there is none.
          ValueError: a damaged file, or a kind of tokenizer that is not supported.
        """
        path = pathlib.Path(path)
        if path.suffix == '.gguf':
            return cls(*tokenizer_gguf.read(path))
        if not (path / 'tokenizer.json').is_file() and not (path / 'vocab.json').is_file():
            raise FileNotFoundError(f'{path}: put the tokenizer files of the model (tokenizer.json, ...) there')
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # tokenizer.json is complete; AutoTokenizer might rebuild it by the class of the model type
        kind = PreTrainedTokenizerFast if (path / 'tokenizer.json').is_file() else AutoTokenizer
        for name in ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'vocab.json'):
            if (path / name).is_file():  # transformers does not name a damaged file
                settings.read_json(path / name)
        try:
            tokenizer = kind.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            raise ValueError(f'{path}: its tokenizer cannot be read ({error})') from error
        return cls(tokenizer, _end_ids(path))

    def require_fit(self, rows: int, path: str | pathlib.Path) -> None:
        """Checks the tokenizer against the model of `path`, whose embedding has `rows` rows, and the protocol's tags.

        Raises:
          ValueError: it has more ids than rows, no end token, or cannot spell a tag.
        """
        if self.vocab_size > rows:
            sizes = f'the tokenizer has {self.vocab_size} ids, the embedding of the model {rows} rows'
            raise ValueError(f'{path}: {sizes}; take the tokenizer that was published with it')
        if not self.eos_ids:
            raise ValueError(f'{path}: neither the tokenizer nor config.json names an end token ("eos_token_id")')
        tags = ''.join((*protocol.STOP_STRINGS, protocol.OBSERVATION_OPEN, protocol.OBSERVATION_CLOSE))
        if self.decode(self.encode(tags)) != tags:
            raise ValueError(f'{path}: the tokenizer lacks bytes to spell the tags {tags.split()}')

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no token is added, and no added token is recognized in the text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; control tokens and ids beyond the vocabulary have none."""
        size = self.vocab_size
        return b''.join(self.token_bytes[i] for i in ids if i < size)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD, control tokens are left out by default."""
        if skip_special_tokens:
            return self.decode_bytes(ids).decode('utf-8', 'replace')
        return ''.join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each id adds to the text, with control tokens by name; ''.join of the pieces is the text.

        A character belongs to the id that completes it.
        """
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        found = [decoder.decode(self._special.get(i) or self.decode_bytes([i])) for i in ids]
        if found:
            found[-1] += decoder.decode(b'', final=True)
        return found

    def chat(
        self, messages: Sequence[dict], add_generation_prompt=True, arguments: dict | None = None, after: str = ''
    ) -> list[int]:
        """Ids of a rendered conversation, in which only the template may write control tokens.

        For contents without added tokens these are the ids of `apply_chat_template`. Without a template they are the
        ids of the contents, one on each line.

        Args:
          messages: [{'role': ..., 'content': ...}, ...]; roles are trusted, all other values are not.
          add_generation_prompt: whether the assistant's turn is opened at the end.
          arguments: further arguments of the template, such as `enable_thinking`.
          after: a text of the conversation: only what follows it is returned.

        Raises:
          ValueError: the template cannot be rendered, or drops a message; there is none, but `after`.
        """
        if not self.has_chat_template and not after:
            return self.encode('\n'.join(filter(None, (message['content'] for message in messages))))
        hide, show = self._disguise(messages)
        hidden = [{k: v if k == 'role' else _map_text(v, hide) for k, v in message.items()} for message in messages]
        rendered = self._render(hidden, add_generation_prompt, {'date_string': DATE, **(arguments or {})})
        rendered = rendered.partition(after)[2] if after else rendered
        pieces = self._added_pattern.split(rendered) if self._added_pattern else [rendered]
        ids = []
        for i, piece in enumerate(pieces):  # texts are at even places, between the template's added tokens
            ids += [self._added[piece]] if i % 2 else self.encode(piece.translate(show))
        return ids

    def _render(self, messages: Sequence[dict], add_generation_prompt: bool, arguments: dict) -> str:
        try:
            template = self.hf.get_chat_template()
            template = _STRFTIME + template if 'strftime_now' in template else template
            options = {'tokenize': False, 'chat_template': template, 'add_generation_prompt': add_generation_prompt}
            rendered = self.hf.apply_chat_template(messages, **options, **arguments)
        except Exception as error:  # a template is a program: it may raise anything
            told = any(message['role'] == 'system' for message in messages)  # which Gemma 1 and 2 have no place for
            hint = "fix it, or send no system message: leave 'system' out of the wording" if told else 'fix it'
            raise ValueError(f'the chat template fails ({type(error).__name__}: {error}); {hint}') from error
        for role in ('user', 'system'):
            said = (m['content'] for m in messages if m['role'] == role and isinstance(m['content'], str))
            if any(content.strip() not in rendered for content in said):
                hint = 'fix it if it wants lists of parts, not text'
                raise ValueError(f'the chat template drops what the {role} says; {hint}')
        return rendered

    def _disguise(self, messages: Sequence[dict]) -> tuple[dict, dict]:
        """Tables that replace the first characters of added tokens by unused private characters, and back.

        The template then gets contents in which no added token can begin, and the text is split at the same places:
        merges across the border of template and content are those of the whole text. (A template's `trim` would miss
        whitespace at the beginning of an added token; no supported family has such a token.)
        """
        firsts = sorted({token[0] for token in self._added})
        taken = set(json.dumps(messages, ensure_ascii=False, default=str))
        private = (c for c in range(0xF0000, 0xFFFFE) if chr(c) not in taken)
        pairs = [(ord(first), next(private)) for first in firsts]
        return dict(pairs), {b: a for a, b in pairs}

    def save(self, directory: str | pathlib.Path, stop_strings: Sequence[str] = ()) -> None:
        """Writes the tokenizer, and the tokens and strings that end a generation, in the files of `transformers`."""
        directory = pathlib.Path(directory)
        self.hf.save_pretrained(str(directory))
        config = directory / 'tokenizer_config.json'
        settings = json.loads(config.read_text())
        # transformers 5 writes a class name that version 4 does not know; both know this one
        config.write_text(json.dumps(settings | {'tokenizer_class': 'PreTrainedTokenizerFast'}, indent=2) + '\n')
        generation: dict[str, Any] = {'eos_token_id': list(self.eos_ids), 'pad_token_id': self.pad_id}
        if stop_strings:
            generation['stop_strings'] = list(stop_strings)
        (directory / 'generation_config.json').write_text(json.dumps(generation, indent=2) + '\n')


def byte_tokenizer() -> Tokenizer:
    """A tokenizer without a file, for tests and the random model `tiny`: 384 ids, of which 256 are the bytes.

    From 256 on there are ChatML's control tokens, then `<think>` and `</think>` as added tokens that are not special.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    unicode_of = {byte: char for char, byte in vocabulary.byte_alphabet().items()}
    backend = Backend(models.BPE(vocab={unicode_of[byte]: byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ('<|im_start|>', '<|im_end|>', '<|endoftext|>')])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in ('<think>', '</think>')])
    reserved = [f'<|reserved_{i}|>' for i in range(backend.get_vocab_size(), 384)]
    backend.add_special_tokens([AddedToken(t, special=True) for t in reserved])
    return Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template=CHATML, eos_token='<|im_end|>', pad_token='<|endoftext|>'
        )
    )


def _prefix(tokenizer) -> tuple[int, ...]:
    """The ids that a tokenizer adds before a text; it may also add ids after it."""
    whole, text = (list(tokenizer('a', add_special_tokens=added).input_ids) for added in (True, False))
    return tuple(whole[: next(i for i in range(len(whole) + 1) if whole[i : i + len(text)] == text)])


def _map_text(value: Any, table: dict) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, dict):
        return {_map_text(k, table): _map_text(v, table) for k, v in value.items()}
    return [_map_text(v, table) for v in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- what a chat template is given


def conversation(message: str, system: str | None = None) -> list[dict[str, str]]:
    """A user's message, after a system message unless `system` is None; '' is a system message without text."""
    before = [] if system is None else [{'role': 'system', 'content': system}]
    return [*before, {'role': 'user', 'content': message}]


def template_arguments(text: str) -> dict[str, Any]:
    """The arguments of a chat template from the text of a setting: a JSON object, or '' for none.

    Raises:
      ValueError: the text is neither.
    """
    try:
        found = settings.parse_json(text or '{}')
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    raise ValueError(f'template_arguments must be a JSON object such as {{"enable_thinking": false}}, got {text!r}')


# ---------------------------------------------------------------- files


def _end_ids(directory: pathlib.Path) -> list[int]:
    """The ids that the files of a model declare as ends of a generation."""
    found: list[int] = []
    for path in (directory / 'config.json', directory / 'generation_config.json'):
        ends = settings.read_json(path).get('eos_token_id') if path.is_file() else None
        ids = ends if isinstance(ends, list) else [ends]
        if any(type(i) is not int or i < 0 for i in ids if i is not None):
            raise ValueError(f'{path}: eos_token_id must be the id of a token or a list of ids, got {ends!r}')
        found += [i for i in ids if i is not None]
    return found
