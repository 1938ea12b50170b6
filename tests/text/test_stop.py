import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosearch_jax.text import stop

TAGS = ('</search>', '</answer>')


def run(compiled, tokens):
    """(index of the accepting token, completed string), or None; accepting must be absorbing."""
    state, hit = 0, None
    for i, token in enumerate(tokens):
        state = int(compiled.table[state, token])
        if state >= compiled.first_accept:
            hit = hit or (i, compiled.strings[state - compiled.first_accept])
            assert compiled.strings[state - compiled.first_accept] == hit[1]
        else:
            assert hit is None
    return hit


def reference(strings, pieces):
    """The same answer from bytes.find on growing prefixes; ties at one end go to the longest string."""
    text = b''
    for i, piece in enumerate(pieces):
        text += piece
        found = [(text.find(s.encode()) + len(s.encode()), -len(s), s) for s in strings if s.encode() in text]
        if found:
            return i, min(found)[2]
    return None


def spell(compiled_strings, pieces):
    vocab = sorted(set(pieces))
    return run(stop.compile_table(compiled_strings, vocab), [vocab.index(p) for p in pieces])


alphabet = st.sampled_from([b'a', b'b', b'<', b'/'])
piece = st.lists(alphabet, max_size=5).map(b''.join)
tag = st.text('ab</', min_size=1, max_size=5)


@settings(max_examples=200)
@given(
    strings=st.lists(tag, min_size=1, max_size=3, unique=True),
    vocab=st.lists(piece, min_size=1, max_size=12),
    choices=st.lists(st.integers(0, 11), max_size=12),
)
def test_any_tokenization_stops_at_the_completing_token(strings, vocab, choices):
    tokens = [c % len(vocab) for c in choices]
    compiled = stop.compile_table(strings, vocab)
    assert run(compiled, tokens) == reference(strings, [vocab[t] for t in tokens])


@given(cuts=st.sets(st.integers(1, 29)), tag=st.sampled_from(TAGS))
def test_real_tags_under_any_split(cuts, tag):
    text = f'</think></sea <search>{tag}\n'.encode()
    edges = [0, *sorted(c for c in cuts if c < len(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    end = text.find(tag.encode()) + len(tag)
    assert spell(TAGS, pieces) == (next(i for i, e in enumerate(edges[1:]) if e >= end), tag)


@pytest.mark.parametrize(
    ('strings', 'pieces', 'expected'),
    [
        (TAGS, [b'x</search>y'], (0, '</search>')),  # one token holds it all
        (TAGS, [bytes([c]) for c in b'</answer>'], (8, '</answer>')),
        (TAGS, [b'</', b'search', b'>\n'], (2, '</search>')),  # bytes beyond the tag
        (TAGS, [b'</search', b' >'], None),
        (TAGS, [b'</sea', b'</search>'], (1, '</search>')),
        (TAGS, [b'</answer></search>', b'</search>'], (0, '</answer>')),  # the first one stays
        (TAGS, [b'</sea', b'', b'rch>'], (2, '</search>')),  # a control token in between
        (('aab',), [b'aa', b'ab'], (1, 'aab')),
        (('</search>', '</s'), [b'</', b'search>'], (1, '</s')),
        (('ab', 'xaby'), [b'xa', b'by'], (1, 'ab')),  # found inside a longer string
        (('b', 'ab'), [b'a', b'b'], (1, 'ab')),  # same last byte: the longest
        (('é',), ['é'.encode()[:1], 'é'.encode()[1:]], (1, 'é')),  # a character split over tokens
    ],
)
def test_by_hand(strings, pieces, expected):
    assert spell(strings, pieces) == expected
    assert reference(strings, pieces) == expected


def test_no_strings_never_accepts():
    compiled = stop.compile_table((), [b'a', b''])
    assert compiled.table.tolist() == [[0, 0], [1, 1]] and compiled.first_accept == 2


def test_nothing_leads_out_of_or_into_the_state_in_which_nothing_stops():
    vocab = [b'<', b'/', b'search>', b'</answer>', b'x', b'']
    compiled = stop.compile_table(TAGS, vocab)
    others = np.delete(compiled.table, compiled.never, axis=0)
    assert (compiled.table[compiled.never] == compiled.never).all() and not (others == compiled.never).any()


@pytest.mark.parametrize('strings', [('',), ('a', ''), ('a', 'a')])
def test_bad_strings(strings):
    with pytest.raises(ValueError, match='distinct and not empty'):
        stop.compile_table(strings, [b'a'])


def test_smallest_type_even_with_many_states():
    assert stop.compile_table(TAGS, [b'a']).table.dtype == np.uint8
    wide = stop.compile_table(('x' * 300,), [b'x' * 150, b'y'])
    assert wide.table.dtype == np.uint16 and run(wide, [0, 1, 0, 0]) == (3, 'x' * 300)


def test_advance_inside_jit(strict_ranks):
    vocab = [b'</', b'search', b'>\n', b'']
    compiled = stop.compile_table(TAGS, vocab)
    tokens_TxB = jnp.array([[0, 0, 3], [1, 2, 0], [2, 1, 1], [3, 2, 2]])

    def body(state_B, token_B):
        state_B = stop.advance(jnp.asarray(compiled.table), state_B, token_B)
        return state_B, state_B >= compiled.first_accept

    _, stopped_TxB = jax.jit(lambda t: jax.lax.scan(body, jnp.zeros(3, jnp.int32), t))(tokens_TxB)
    np.testing.assert_array_equal(stopped_TxB, [[False] * 3, [False] * 3, [True, False, False], [True, False, True]])


def test_whole_vocabulary_at_once():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, 150_000)
    letters = np.frombuffer(b'</searchn>w \n', np.uint8)
    vocab = [rng.choice(letters, n).tobytes() for n in lengths[:2000]]
    vocab = [*vocab * 75, b' ' * 128, b'</search>']
    compiled = stop.compile_table(TAGS, vocab)
    assert compiled.table.shape == (compiled.first_accept + 2, len(vocab))
    assert compiled.table[0, -1] == compiled.first_accept and compiled.table[0, -2] == 0
    np.testing.assert_array_equal(compiled.table[:, :2000], compiled.table[:, 2000:4000])
