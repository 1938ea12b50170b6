"""The vocabulary of a tokenizer: the bytes of every token, and the backend that writes no control token."""

import json
from typing import Any


def byte_alphabet() -> dict[str, int]:
    """{character: byte} of byte-level vocabularies (GPT-2), in which a printable character represents each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = {f'<0x{byte:02X}>': bytes([byte]) for byte in range(256)}  # tokens for bytes of characters without a token
_SPACE = '▁'  # in their vocabularies
_SPACES = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': _SPACE}


def token_bytes(spec: dict, added: dict[str, int], special: set[str], fallback: bool) -> list[bytes]:
    """The bytes of every id; none for special tokens. `added` are the added tokens that control something."""
    vocab = spec['model']['vocab'] | {token['content']: token['id'] for token in spec['added_tokens']}
    out, alphabet = [b''] * (1 + max(vocab.values())), byte_alphabet()
    for token, i in vocab.items():
        if token not in added and fallback:
            out[i] = _BYTES.get(token) or token.replace(_SPACE, ' ').encode()
        elif token not in added:
            out[i] = bytes(alphabet[char] for char in token)
    for token, i in added.items():
        out[i] = b'' if token in special else token.encode()
    return out


def falls_back_to_bytes(spec: dict) -> bool:
    """Whether a tokenizer is BPE over characters, with tokens for bytes of others, or over bytes (SmolLM2 lacks some).

    Raises:
      ValueError: it is neither.
    """
    model, added = spec['model'], {token['content'] for token in spec['added_tokens']}
    if model.get('byte_fallback') and spec.get('normalizer') == _SPACES and _BYTES.keys() <= model['vocab'].keys():
        return True
    alphabet, is_bpe = byte_alphabet(), model.get('type') == 'BPE' and not model.get('byte_fallback')
    odd = [token for token in model['vocab'] if is_bpe and token not in added and not alphabet.keys() >= set(token)]
    if not is_bpe or odd:
        found = f'{model.get("type")} with the entry {odd[0]!r}' if odd else model.get('type')
        known = 'byte-level BPE (that of Llama 3, Qwen, SmolLM) and that of Gemma'
        raise ValueError(f'tokenizer: {found}; only {known} are supported')
    return False


def is_text(token: dict) -> bool:
    """Whether an added token is a run of spaces or lines, which Gemma has many of: it controls nothing."""
    return not token['special'] and not token['content'].strip(f'{_SPACE}\n\t')


def plain_backend(spec: dict, control: dict[str, int]) -> Any:
    """The tokenizer without added tokens that control something: it never returns their ids, nor merges a byte's."""
    from tokenizers import Tokenizer as Backend

    model, left = spec['model'], [token for token in spec['added_tokens'] if token['content'] not in control]
    added = control.keys() | (_BYTES.keys() if model.get('byte_fallback') else ())
    pairs = (m if isinstance(m, list) else m.split(' ', 1) for m in model['merges'])
    # an added token may also be an entry of the vocabulary, reached by merges
    merges = [[a, b] for a, b in pairs if not added & {a, b, a + b}]
    vocab = {token: i for token, i in model['vocab'].items() if token not in control}
    model = model | {'vocab': vocab, 'merges': merges, 'unk_token': None}
    plain = spec | {'added_tokens': left, 'post_processor': None, 'truncation': None, 'padding': None, 'model': model}
    return Backend.from_str(json.dumps(plain))
