"""Text to token ids and back, for byte-level BPE tokenizers (Llama 3, Qwen, SmolLM).

Two backends share one vocabulary. The one of the model knows its added tokens (`<|im_end|>`, Qwen3's `<think>`); only
chat templates go through it. The plain one does not know them, and encodes everything that anybody wrote: text can
never turn into a control token, whatever it spells (contract C11).
"""

import codecs
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from zerosearch_jax.weights import gguf

# End a generation wherever a tokenizer has them, besides what it declares itself.
END_TOKENS = ('<|im_end|>', '<|eot_id|>', '<|eom_id|>', '<|endoftext|>', '<|end_of_text|>')

DATE = '26 Jul 2024'  # what templates that tell the date write: a prompt is the same on every day

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types of GGUF; the others (unused, unknown) are only padding here


class Tokenizer:
    """A fast Hugging Face tokenizer that never reads control tokens out of text.

    Attributes:
      vocab_size: ids are below it; a model may have more rows, which stand for nothing.
      eos_ids: tokens that end a generation, the tokenizer's own first.
      pad_id: a filler; it may equal an eos id, so masks never come from it.
      token_bytes: bytes of each id; b'' for control tokens and unused ids.
      prefix: ids that begin any raw text (a beginning-of-sequence token, or nothing).
      has_chat_template: whether `chat` has a template to render.
    """

    def __init__(self, tokenizer, extra_eos_ids: Iterable[int] = ()):
        """Wraps a transformers.PreTrainedTokenizerFast.

        Raises:
          ValueError: not a byte-level BPE tokenizer.
        """
        if not getattr(tokenizer, 'is_fast', False):
            raise ValueError(f'{type(tokenizer).__name__}: a fast tokenizer (tokenizer.json) is needed')
        self.hf = tokenizer
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        _require_byte_level(spec)
        added = {token['content']: token['id'] for token in spec['added_tokens']}
        special = {token['content'] for token in spec['added_tokens'] if token['special']}
        self.token_bytes = _token_bytes(spec['model']['vocab'], added, special)
        self.vocab_size = len(self.token_bytes)
        ends = [tokenizer.eos_token_id, *extra_eos_ids, *(added.get(token) for token in END_TOKENS)]
        self.eos_ids = tuple(dict.fromkeys(i for i in ends if i is not None and i < self.vocab_size))
        pads = [tokenizer.pad_token_id, *self.eos_ids, 0]
        self.pad_id = next(i for i in pads if i is not None)
        self.prefix = tuple(tokenizer('').input_ids)
        self.has_chat_template = tokenizer.chat_template is not None
        self._added = added
        self._special = {i: content.encode() for content, i in added.items() if content in special}
        longest_first = sorted(added, key=len, reverse=True)
        self._added_pattern = re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')') if added else None
        self._plain = _plain_backend(spec)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> 'Tokenizer':
        """The tokenizer of a Hugging Face directory or a GGUF file.

        Raises:
          FileNotFoundError: nothing there.
          ValueError: a kind of tokenizer that is not supported.
        """
        path = pathlib.Path(path)
        if path.suffix == '.gguf':
            return cls(_from_gguf(path))
        if not (path / 'tokenizer.json').is_file() and not (path / 'vocab.json').is_file():
            raise FileNotFoundError(f'{path}: put the tokenizer files of the model (tokenizer.json, ...) there')
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # tokenizer.json is complete; AutoTokenizer may rebuild it after the class that it finds for the model type
        kind = PreTrainedTokenizerFast if (path / 'tokenizer.json').is_file() else AutoTokenizer
        return cls(kind.from_pretrained(str(path), local_files_only=True), _generation_eos_ids(path))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no token is added, and none of the added tokens is recognized in it."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids spell; control tokens and ids beyond the vocabulary spell nothing."""
        size = self.vocab_size
        return b''.join(self.token_bytes[i] for i in ids if i < size)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD, control tokens nothing unless they are wanted."""
        if skip_special_tokens:
            return self.decode_bytes(ids).decode('utf-8', 'replace')
        return ''.join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each id adds to the text, control tokens as they are called; ''.join of them is the text.

        A character belongs to the id that ends it.
        """
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        found = [decoder.decode(self._special.get(i) or self.decode_bytes([i])) for i in ids]
        if found:
            found[-1] += decoder.decode(b'', final=True)
        return found

    def chat(self, messages: Sequence[dict], add_generation_prompt: bool = True) -> list[int]:
        """Ids of a rendered conversation, in which only the template may write control tokens.

        For contents free of added tokens these are the ids of `apply_chat_template`. Without a template they are
        those of the contents, a line each.

        Args:
          messages: [{'role': ..., 'content': ...}, ...]; roles are trusted, every other value is not.
          add_generation_prompt: whether the assistant's turn is opened at the end.
        """
        if not self.has_chat_template:
            return self.encode('\n'.join(message['content'] for message in messages))
        hide, show = self._disguise(messages)
        hidden = [{k: v if k == 'role' else _map_text(v, hide) for k, v in message.items()} for message in messages]
        rendered = self.hf.apply_chat_template(
            hidden, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE
        )
        pieces = self._added_pattern.split(rendered) if self._added_pattern else [rendered]
        ids = []
        for i, piece in enumerate(pieces):  # texts at even places, between the added tokens of the template
            ids += [self._added[piece]] if i % 2 else self.encode(piece.translate(show))
        return ids

    def _disguise(self, messages: Sequence[dict]) -> tuple[dict, dict]:
        """Tables that replace the first characters of added tokens by unused private ones, and back.

        The template sees contents in which no added token can begin, and nothing is split at a different place: the
        merges across the border of template and content stay those of the whole text. (A template's `trim` does not
        see whitespace if an added token begins with it; no supported family has such a token.)
        """
        firsts = sorted({token[0] for token in self._added})
        taken = set(json.dumps(messages, ensure_ascii=False, default=str))
        private = (c for c in range(0xF0000, 0xFFFFE) if chr(c) not in taken)
        pairs = [(ord(first), next(private)) for first in firsts]
        return dict(pairs), {b: a for a, b in pairs}

    def save(self, directory: str | pathlib.Path, stop_strings: Sequence[str] = ()) -> None:
        """Writes the tokenizer, and the tokens and strings that end a generation, where `transformers` finds them."""
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

    ChatML control tokens follow from 256, then `<think>` and `</think>` as added tokens that are not special.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    unicode_of = {byte: char for char, byte in _byte_alphabet().items()}
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


# ---------------------------------------------------------------- bytes


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2), reversed."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _token_bytes(vocab: dict[str, int], added: dict[str, int], special: set[str]) -> list[bytes]:
    alphabet = _byte_alphabet()
    out = [b''] * (1 + max([*vocab.values(), *added.values()]))
    for token, i in vocab.items():
        if token not in added:
            out[i] = bytes(alphabet[char] for char in token)
    for token, i in added.items():
        out[i] = b'' if token in special else token.encode()
    return out


def _require_byte_level(spec: dict) -> None:
    """Raises ValueError unless the tokenizer is BPE over the byte characters (SmolLM2 lacks some of the 256)."""
    model, added = spec['model'], {token['content'] for token in spec['added_tokens']}
    alphabet = _byte_alphabet()
    odd = [token for token in model['vocab'] if token not in added and not alphabet.keys() >= set(token)]
    if model.get('type') != 'BPE' or model.get('byte_fallback') or odd:
        found = f'{model.get("type")} with the entry {odd[0]!r}' if odd else model.get('type')
        raise ValueError(f'tokenizer: {found}; only byte-level BPE (that of Llama 3, Qwen, SmolLM) is supported')


def _plain_backend(spec: dict) -> Any:
    """The tokenizer without its added tokens: no id of theirs can come out of it."""
    from tokenizers import Tokenizer as Backend

    added, model = {token['content'] for token in spec['added_tokens']}, spec['model']
    pairs = (m if isinstance(m, list) else m.split(' ', 1) for m in model['merges'])
    # an added token may also be an entry of the vocabulary, reached by merges
    merges = [[a, b] for a, b in pairs if not added & {a, b, a + b}]
    vocab = {token: i for token, i in model['vocab'].items() if token not in added}
    model = model | {'vocab': vocab, 'merges': merges, 'unk_token': None}
    plain = spec | {'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None, 'model': model}
    return Backend.from_str(json.dumps(plain))


def _map_text(value: Any, table: dict) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, dict):
        return {_map_text(k, table): _map_text(v, table) for k, v in value.items()}
    return [_map_text(v, table) for v in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- files


def _generation_eos_ids(directory: pathlib.Path) -> list[int]:
    path = directory / 'generation_config.json'
    eos = json.loads(path.read_text()).get('eos_token_id') if path.is_file() else None
    return eos if isinstance(eos, list) else [eos]


def _from_gguf(path: pathlib.Path):
    """A PreTrainedTokenizerFast out of the metadata of a GGUF file (transformers would need torch for that)."""
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    reader = gguf.open_gguf(path)

    def get(key: str, default=None):
        return gguf.gguf_value(reader, f'tokenizer.{key}', default)

    kind, pre = get('ggml.model'), get('ggml.pre')
    if kind != 'gpt2' or pre not in ('smollm', 'gpt-2', 'qwen2', 'llama-bpe'):
        raise ValueError(
            f'{path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported; '
            'supported: gpt2 with smollm, gpt-2, qwen2 or llama-bpe'
        )
    tokens = get('ggml.tokens')
    typed = list(zip(tokens, get('ggml.token_type'), strict=True))
    vocab = {token: i for i, (token, t) in enumerate(typed) if t in (_NORMAL, _CONTROL, _USER_DEFINED)}
    merges = [tuple(merge.split(' ', 1)) for merge in get('ggml.merges')]
    # Llama 3 takes a word that is in the vocabulary as it is, whatever the merges would make of it
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == 'llama-bpe'))
    if pre == 'qwen2':
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token, t in typed if t == _CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False) for token, t in typed if t == _USER_DEFINED])
    begin = get('ggml.bos_token_id')
    if begin is not None and get('ggml.add_bos_token', pre == 'llama-bpe'):
        begins = f'{tokens[begin]} $A'
        backend.post_processor = processors.TemplateProcessing(begins, special_tokens=[(tokens[begin], begin)])
    ids = {'bos': begin, 'eos': get('ggml.eos_token_id'), 'pad': get('ggml.padding_token_id')}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=get('chat_template'),
        clean_up_tokenization_spaces=False,
        **{f'{name}_token': tokens[i] for name, i in ids.items() if i is not None},
    )


def _pre_tokenizer(pre: str):
    from tokenizers import Regex, pre_tokenizers

    if pre in ('gpt-2', 'smollm'):
        splits = [pre_tokenizers.Digits(individual_digits=True)] if pre == 'smollm' else []
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    digits = r'\p{N}' if pre == 'qwen2' else r'\p{N}{1,3}'
    words = pre_tokenizers.Split(Regex(_WORDS % digits), 'isolated')
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
