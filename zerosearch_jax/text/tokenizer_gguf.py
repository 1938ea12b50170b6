"""The tokenizer that a GGUF file holds in its metadata."""

import pathlib

from zerosearch_jax.weights import gguf

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types of GGUF; other types (unused, unknown) are padding here


def read(path: pathlib.Path):
    """A PreTrainedTokenizerFast from the metadata (transformers would need torch for that), and further end ids.

    Raises:
      ValueError: the kind of tokenizer is not supported, or metadata are missing or have wrong types.
    """
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
    tokens, types = get('ggml.tokens', []), get('ggml.token_type', [])
    if not tokens or len(tokens) != len(types):
        raise ValueError(f'{path}: {len(tokens)} tokens and {len(types)} types of tokens; this GGUF file is incomplete')
    typed = list(zip(tokens, types, strict=True))
    named = {name: get(f'ggml.{name}_token_id') for name in ('bos', 'eos', 'padding', 'eot', 'eom')}
    ids = {name: i for name, i in named.items() if i is not None}
    for name, i in ids.items():
        if type(i) is not int or not 0 <= i < len(tokens):
            raise ValueError(f'{path}: {name}_token_id must be the id of one of its {len(tokens)} tokens, got {i!r}')
    vocab = {token: i for i, (token, t) in enumerate(typed) if t in (_NORMAL, _CONTROL, _USER_DEFINED)}
    merges = [tuple(merge.split(' ', 1)) for merge in get('ggml.merges', [])]
    # Llama 3 uses a word that is in the vocabulary as one token, whatever the merges would give
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == 'llama-bpe'))
    if pre == 'qwen2':
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token, t in typed if t == _CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False) for token, t in typed if t == _USER_DEFINED])
    begin = ids.get('bos')
    if begin is not None and get('ggml.add_bos_token', pre == 'llama-bpe'):
        begins = f'{tokens[begin]} $A'
        backend.post_processor = processors.TemplateProcessing(begins, special_tokens=[(tokens[begin], begin)])
    names = {'bos': 'bos_token', 'eos': 'eos_token', 'padding': 'pad_token'}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=get('chat_template'),
        clean_up_tokenization_spaces=False,
        **{names[name]: tokens[i] for name, i in ids.items() if name in names},
    )
    return tokenizer, [ids[name] for name in ('eot', 'eom') if name in ids]


def pre_tokenizer(pre: str):
    """The component that splits a text into words, by its name in GGUF."""
    from tokenizers import Regex, pre_tokenizers

    if pre in ('gpt-2', 'smollm'):
        splits = [pre_tokenizers.Digits(individual_digits=True)] if pre == 'smollm' else []
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    digits = r'\p{N}' if pre == 'qwen2' else r'\p{N}{1,3}'
    words = pre_tokenizers.Split(Regex(_WORDS % digits), 'isolated')
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
