"""The engine against an uncached forward pass, against the trainer, and against itself under another schedule."""

import dataclasses
import functools
import itertools
import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, drain, key, prompt, requests, tiny_engine, tiny_params

from zerosearch_jax import sharding
from zerosearch_jax.generate import programs
from zerosearch_jax.generate.capacity import EXTEND_ROWS, SPAN_STEP, decode_span
from zerosearch_jax.generate.engine import Request, Stopped
from zerosearch_jax.generate.sampling import Truncation
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models import lora
from zerosearch_jax.rl import losses, step
from zerosearch_jax.sharding import make_mesh
from zerosearch_jax.text import stop, trajectory
from zerosearch_jax.text.trajectory import Kind, Segment

MESH = make_mesh()
RAGGED = (1, 2, 3, 31, 60, 128, 129, 130, 161, 200)  # around the width of `extend`, 128


@functools.cache
def params(seed=0):
    return tiny_params(MESH, seed)


def engine(temperature=1.0, seed=0, **kw):
    return tiny_engine(MESH, params(seed), temperature=temperature, **kw)


def tokens(stopped):
    return {handle: result.tokens for handle, result in stopped.items()}


def assert_same(a, b, atol=1e-4):
    """Same tokens and reasons, and log-probs up to the order of float sums."""
    assert {h: (r.tokens, r.reason) for h, r in a.items()} == {h: (r.tokens, r.reason) for h, r in b.items()}
    for handle in a:
        np.testing.assert_allclose(a[handle].logprobs, b[handle].logprobs, atol=atol)


def uncached(prompts, results):
    """Logits [N, T, V] by one full forward pass of prompt and sampled tokens."""
    rows = np.zeros((len(prompts), 320), np.int32)
    for row, (start, result) in enumerate(zip(prompts, results, strict=True)):
        rows[row, : len(start) + len(result.tokens)] = (*start, *result.tokens)
    with jax.set_mesh(MESH):
        return np.asarray(helpers.full_logits(params(), rows))


def test_greedy_equals_the_uncached_forward():
    lengths = (*RAGGED, 250)  # the last one crosses a cache span on its way
    asked = requests(lengths, 12)
    done = drain(engine(0.0, slots=4, capacity=512), asked)
    logits = uncached([r.prompt for r in asked], [done[r.handle] for r in asked])
    for row, request in zip(logits, asked, strict=True):
        result, start = done[request.handle], len(request.prompt)
        predicting = row[start - 1 : start + 11]
        assert len(result.tokens) == 12 and result.reason == 'length'
        assert result.tokens == tuple(predicting.argmax(-1).tolist())
        expected = np.asarray(jax.nn.log_softmax(predicting))[np.arange(12), result.tokens]
        np.testing.assert_allclose(result.logprobs, expected, atol=1e-4)
    assert len(set(tokens(done).values())) == len(lengths)


def test_new_tokens_are_heard_at_every_look():
    talker, on_tokens = engine(0.7, slots=2), {}
    for request in requests((5, 3, 9), 10):
        talker.open(request)
    done = {}
    while talker.active:
        for result in talker.step(lambda handle, fresh: on_tokens.setdefault(handle, []).append(fresh)):
            done[result.handle] = result
            talker.close(result.handle)
    assert {handle: tuple(itertools.chain(*parts)) for handle, parts in on_tokens.items()} == tokens(done)
    assert [len(part) for part in on_tokens[0]] == [4, 4, 2]


def conversation(talker, lengths, observations, budget=9):
    """Segments of every trajectory: prompt, then actions with observations between them."""
    asked = {r.handle: r for r in requests(lengths, budget)}
    story = {h: [Segment(Kind.PROMPT, r.prompt)] for h, r in asked.items()}
    for request in asked.values():
        talker.open(request)
    while talker.active:
        for result in talker.step():
            segments = story[result.handle]
            segments.append(Segment(Kind.ACTION, result.tokens, result.logprobs))
            turn = sum(s.kind is Kind.OBSERVATION for s in segments)
            if turn < len(observations):
                seen = prompt(observations[turn], 7 + result.handle)
                segments.append(Segment(Kind.OBSERVATION, seen))
                talker.extend(result.handle, seen, budget + turn)
            else:
                talker.close(result.handle)
    return story


@functools.cache
def three_turns():
    return conversation(engine(0.7, slots=4, capacity=512), RAGGED, (40, 1))


def test_engine_logprobs_equal_the_trainers_over_turns():
    story = list(three_turns().values())
    sequences = [trajectory.flatten(segments) for segments in story]
    batch = trajectory.pack(sequences, [0.0] * len(sequences), row_length=384, rows_per_micro=2)
    with jax.set_mesh(MESH):
        scored = step.score({}, params(), batch, 0.7, cfg=TINY, compute=losses.Compute())
    gap = np.abs(np.asarray(scored) - batch.old_logprobs)[batch.weights > 0]
    assert gap.size == len(story) * (9 + 9 + 10)
    assert gap.max() <= 1e-4


def test_extend_equals_one_prefill_of_everything():
    """The last turn, sampled again from scratch with all that came before as its prompt."""
    story = three_turns()
    asked, expected = [], {}
    for handle, segments in story.items():
        before = tuple(t for s in segments[:-1] for t in s.tokens)
        asked.append(Request(handle, before, key(handle), len(segments[-1].tokens)))
        expected[handle] = Stopped(handle, segments[-1].tokens, segments[-1].logprobs, 'length')
    assert_same(drain(engine(0.7, capacity=512), asked), expected)


def test_extend_without_tokens_carries_on_with_the_sample():
    asked = requests((3, 40), 10)
    whole = drain(engine(), asked)
    other = engine()
    first = drain(other, [dataclasses.replace(r, budget=4) for r in asked], close=False)
    for handle in first:
        other.extend(handle, (), 6)
    second = drain(other)
    assert {h: first[h].tokens + second[h].tokens for h in first} == tokens(whole)


def test_a_stopped_row_waits_untouched_while_others_decode():
    """Idle rows ride along in decode, with a shorter span than their own length, and must come out unharmed."""
    long, seen = prompt(290), prompt(5, 1)
    alone = engine(slots=4, capacity=512)
    waited = engine(slots=4, capacity=512)
    for one in (alone, waited):
        drain(one, [Request('long', long, key(0), 3)], close=False)
    drain(waited, [Request(i, prompt(5, i), key(i), 40) for i in range(6)])
    for one in (alone, waited):
        one.extend('long', seen, 8)
    assert_same(drain(alone), drain(waited))


def group(size, keys, shared=True):
    return [Request(i, prompt(37), key(keys[i]), 10, group='q' if shared else None) for i in range(size)]


def test_group_members_differ_and_equal_keys_agree():
    done = tokens(drain(engine(), group(6, [0, 1, 2, 3, 4, 0])))
    assert done[5] == done[0]
    assert len(set(done.values())) == 5


def test_shared_prefill_equals_separate_prefills():
    shared, separate = engine(slots=4), engine(slots=4)  # more members than slots: some fork from a running one
    keys = list(range(9))
    assert_same(drain(shared, group(9, keys)), drain(separate, group(9, keys, shared=False)))
    assert separate.prefilled_tokens == 9 * 36
    assert shared.prefilled_tokens < separate.prefilled_tokens / 2


def test_shared_prefill_from_a_member_in_its_second_turn():
    shared = engine(slots=4)
    drain(shared, group(1, [0]), close=False)
    shared.extend(0, prompt(20, 3), 5)
    late = dataclasses.replace(group(2, [0, 1])[1], handle='late')
    done = drain(shared, [late])
    assert shared.prefilled_tokens == 36 + 20  # the late member was not prefilled
    assert done['late'].tokens == drain(engine(), [dataclasses.replace(late, group=None)])['late'].tokens


def test_no_schedule_changes_a_sample():
    asked = [Request(i, prompt((5, 40, 70)[i % 3], i // 2), key(i), 6 + i) for i in range(12)]
    expected = drain(engine(slots=4, steps=3), asked)
    assert len(set(tokens(expected).values())) == 12
    rng = np.random.default_rng(0)
    for slots, steps in [(4, 3), (8, 16), (8, 3), (4, 16)]:
        order = [asked[i] for i in rng.permutation(12)]
        assert_same(drain(engine(slots=slots, steps=steps), order), expected)


def test_temperature_counts():
    cold, warm = (tokens(drain(engine(t), requests(RAGGED[:8], 10))) for t in (0.3, 1.0))
    assert sum(cold[h] != warm[h] for h in cold) >= 6


def letter_stops(strings):
    """A vocabulary of short strings over 'ab' (and tokens without bytes), so that stop strings complete by chance."""
    rng = np.random.default_rng(0)
    vocab = [bytes(rng.choice([97, 98], rng.integers(0, 4)).tolist()) for _ in range(TINY.vocab_size)]
    return vocab, stop.compile_table(strings, vocab)


def cut(sampled, vocab, strings):
    """(tokens up to and with the one that completes a stop string, that string), or all and 'length'."""
    text = b''
    for i, token in enumerate(sampled):
        text += vocab[token]
        found = [(text.find(s.encode()) + len(s), s) for s in strings if s.encode() in text]
        if found:
            return sampled[: i + 1], min(found)[1]
    return sampled, 'length'


def test_a_row_stops_at_exactly_the_completing_token_in_every_turn():
    strings = ('aabab', 'bbbabb')
    vocab, table = letter_stops(strings)
    asked, budget = requests(range(1, 17), 24), 24
    free, stopping = engine(), engine(stops=table, slots=16)
    first = drain(stopping, asked, close=False)
    reference = tokens(drain(free, asked))
    expected = {h: cut(sampled, vocab, strings) for h, sampled in reference.items()}
    assert {h: (r.tokens, r.reason) for h, r in first.items()} == expected
    assert {reason for _, reason in expected.values()} == {*strings, 'length'}
    assert len({len(sampled) for sampled, _ in expected.values()}) > 5

    seen = prompt(6, 50)
    carry = [Request(r.handle, (*r.prompt, *first[r.handle].tokens, *seen), r.key, budget) for r in asked]
    for request in asked:
        stopping.extend(request.handle, seen, budget)
    second = drain(stopping)
    expected = {h: cut(sampled, vocab, strings) for h, sampled in tokens(drain(engine(), carry)).items()}
    assert {h: (r.tokens, r.reason) for h, r in second.items()} == expected


def test_eos_ends_a_row_and_is_returned():
    asked = requests(range(1, 9), 20)
    reference = tokens(drain(engine(), asked))
    ends = (reference[0][5], reference[3][9])
    done = drain(engine(eos_ids=ends), asked)
    for handle, sampled in reference.items():
        at = next((i for i, token in enumerate(sampled) if token in ends), None)
        kept, reason = (sampled, 'length') if at is None else (sampled[: at + 1], 'eos')
        assert (done[handle].tokens, done[handle].reason) == (kept, reason)
    assert {r.reason for r in done.values()} == {'eos', 'length'}


def test_budgets_are_exact():
    asked = [Request(n, prompt(4, n), key(n), n) for n in (1, 2, 3, 4, 5, 8, 9)]
    done = drain(engine(steps=4), asked)
    assert {h: len(r.tokens) for h, r in done.items()} == {r.handle: r.budget for r in asked}


def test_truncation_restricts_the_support_but_not_the_logprob():
    asked = requests((3, 8, 20), 12)
    done = drain(engine(truncation=Truncation(top_k=2)), asked)
    logits = uncached([r.prompt for r in asked], [done[r.handle] for r in asked])
    ranks = []
    for row, request in zip(logits, asked, strict=True):
        start, sampled = len(request.prompt), done[request.handle].tokens
        predicting = row[start - 1 : start + 11]
        ranks += (predicting > predicting[np.arange(12), sampled][:, None]).sum(-1).tolist()
        expected = np.asarray(jax.nn.log_softmax(predicting))[np.arange(12), sampled]
        np.testing.assert_allclose(done[request.handle].logprobs, expected, atol=1e-4)
    assert set(ranks) == {0, 1}


def test_new_weights_give_what_a_fresh_engine_gives():
    asked = [*group(3, [0, 1, 2]), Request('other', prompt(9), key(9), 10)]
    used = engine()
    before = drain(used, asked)
    used.load(params(1))
    after = drain(used, asked)
    assert_same(after, drain(engine(seed=1), asked))
    assert all(after[h].tokens != before[h].tokens for h in after)
    used.load(params(0))
    assert_same(drain(used, asked), before)


def test_load_with_open_generations_raises():
    busy = engine(slots=4)
    busy.open(Request(0, (1, 2), key(0), 3))
    with pytest.raises(RuntimeError, match='1 generations are open'):
        busy.load(params(1))  # waiting
    drain(busy, close=False)
    with pytest.raises(RuntimeError, match='1 generations are open'):
        busy.load(params(1))  # stopped, its cache kept
    busy.close(0)
    busy.load(params(1))


def test_step_before_load_raises():
    empty = tiny_engine(MESH)
    empty.open(Request(0, (1, 2), key(0), 3))
    with pytest.raises(RuntimeError, match=r'call load\(\) first'):
        empty.step()


def test_a_slot_is_filled_to_its_last_position_and_no_further():
    full = engine(0.0, slots=4)
    start = prompt(250)
    with pytest.raises(ValueError, match=r"'big' needs 257 tokens, but a slot holds 256"):
        full.open(Request('big', start, key(0), 7))
    done = drain(full, [Request('fits', start, key(0), 6)])['fits']
    predicting = uncached([start], [done])[0, 249:255]
    assert done.tokens == tuple(predicting.argmax(-1).tolist())
    np.testing.assert_allclose(done.logprobs, np.asarray(jax.nn.log_softmax(predicting)).max(-1), atol=1e-4)


def test_extend_checks_its_room_and_leaves_the_generation_as_it_was():
    full = engine(0.0, slots=4)
    first = drain(full, [Request(0, prompt(240), key(0), 6)], close=False)[0]
    with pytest.raises(ValueError, match='needs 257 tokens'):
        full.extend(0, prompt(5), 6)
    assert full.active == 0
    full.extend(0, prompt(5), 5)
    second = drain(full)[0]
    predicting = uncached([prompt(240) + first.tokens + prompt(5)], [second])[0, 250:255]
    assert second.tokens == tuple(predicting.argmax(-1).tolist())


def test_capacity_is_rounded_up_to_the_span():
    assert [engine(slots=4, capacity=c).capacity for c in (1, 128, 129)] == [128, 128, 256]


SPANS = (128, 256, 512)  # of a slot of 512 tokens


def test_spans_double_up_to_the_whole_slot():
    assert sorted({decode_span(n, 512) for n in range(1, 513)}) == list(SPANS)
    assert sorted({decode_span(n, 640) for n in range(1, 641)}) == [*SPANS, 640]
    assert all(n <= decode_span(n, 4608) < max(2 * n, 129) for n in range(1, 4609))


def test_a_byte_budget_bounds_the_slots():
    capacity = 512
    each = kv.slot_bytes(TINY, MESH, capacity, jnp.float32)
    assert each == sum(x.nbytes for x in jax.tree.leaves(kv.create(TINY, MESH, 1, capacity)))
    held = 2 * capacity - SPAN_STEP  # more than decoding ever copies
    budget = 5 * each * held // capacity
    got = engine(slots=64, capacity=capacity, cache_bytes=budget)
    assert (got.slots, engine(slots=3, capacity=capacity, cache_bytes=budget).slots) == (5, 3)
    assert set(drain(got, requests(RAGGED, 3))) == set(range(len(RAGGED)))
    wide = make_mesh((1, 4, 2))  # a device has a quarter of the slots and half of the heads
    assert tiny_engine(wide, slots=64, capacity=capacity, cache_bytes=budget).slots == 40
    with pytest.raises(ValueError, match=r'no slot of 512 tokens fits .* it needs'):
        engine(slots=4, capacity=capacity, cache_bytes=each)


def test_slots_are_refilled_as_rows_finish():
    """One long row beside many short ones: the short ones all pass through the other slots meanwhile."""
    small = engine(slots=4, steps=4)
    asked = [Request('long', prompt(3), key(0), 64), *(Request(i, prompt(5, i), key(i), 4) for i in range(1, 40))]
    for request in asked:
        small.open(request)
    finished, looks = [], 0
    while small.active:
        for result in small.step():
            finished.append(result.handle)
            small.close(result.handle)
        looks += 1
    assert sorted(map(str, finished)) == sorted(str(r.handle) for r in asked)
    assert finished[-1] == 'long' and looks == 16  # 39 short rows on three slots: 13 looks
    assert small.decoded_tokens == 64 + 39 * 4
    assert small.prefilled_tokens == 2 + 39 * 4


def test_stopped_rows_keep_their_slots_until_closed():
    small = engine(slots=4, steps=4)
    for request in requests(range(1, 7), 4):
        small.open(request)
    assert sorted(r.handle for r in small.step()) == [0, 1, 2, 3]
    assert small.step() == [] and small.active == 0  # nothing to advance before a slot is freed
    small.close(2)
    assert small.active == 1
    assert [r.handle for r in small.step()] == [4]


@pytest.mark.parametrize('again', [(3, 12), (0, 1, 3, 6, 8, 12, 15)])  # a quarter, half of the slots
def test_few_decoding_rows_are_computed_alone_and_sample_the_same(again):
    """A long row among sixteen slots, first with fifteen others, then with those stopped but open around it."""
    asked = requests(range(20, 36), 4)
    asked[9] = dataclasses.replace(asked[9], budget=40)
    crowd = engine(slots=16, steps=4)
    together = drain(crowd, asked, close=False)
    assert_same({9: together[9]}, drain(engine(slots=4), [asked[9]]))
    for handle in again:  # the others' caches were not touched meanwhile
        crowd.extend(handle, prompt(7), 6)
    later = drain(crowd)
    for handle in again:
        whole = asked[handle].prompt + together[handle].tokens + prompt(7)
        alone = drain(engine(slots=4), [Request(handle, whole, key(handle), 6)])
        assert_same({handle: later[handle]}, alone)


def test_compiled_programs_are_few_whatever_the_lengths():
    def compiled():
        return np.array([f._cache_size() for f in (programs.extend, programs.fork, programs.decode)])

    def wave(lengths, budgets):
        return [
            Request((i, j), prompt(int(n), i), key(10 * i + j), int(b), group=i)
            for i, (n, b) in enumerate(zip(lengths, budgets, strict=True))
            for j in range(3)
        ]

    before, rng = compiled(), np.random.default_rng(0)
    odd = engine(slots=12, steps=5, capacity=512)  # shapes of no other test
    assert len(drain(odd, wave(rng.integers(1, 400, 24), rng.integers(1, 30, 24)))) == 72
    few = compiled() - before
    # one a number of rows, one, and for all slots, half and a quarter one a span; and once more, as the very first
    # cache spells its sharding differently
    most = np.array([len(EXTEND_ROWS), 1, 3 * len(SPANS)])
    assert (few >= (2, 1, 2)).all() and (few <= most + 1).all(), few


@pytest.mark.parametrize('span', [384, 512])
def test_a_decode_step_copies_no_cache(span):
    """In the compiled program: the loop has no copy of a layer's keys or values, and a whole span needs no room."""
    with jax.set_mesh(MESH):
        cache = kv.create(TINY, MESH, 16, 512)
        program = programs.decode.lower(
            *(programs.serving_layout(params(), dtype=jnp.float32), cache, programs.idle_rows(16), None),
            *(jnp.zeros((1, TINY.vocab_size), jnp.int32), np.float32(1)),
            **dict(cfg=TINY, dtype=jnp.float32, steps=4, span=span, eos_ids=(), first_accept=1),
        ).compile()
    layer = rf'f32\[16,{TINY.num_kv_heads},(?:{TINY.head_dim},{span}|{span},{TINY.head_dim})\]'
    loop = [line for line in program.as_text().splitlines() if '/while/body/' in line]
    assert any(re.search(rf'= {layer}.*(scatter|dynamic-update-slice)', line) for line in loop)
    assert not [line for line in loop if re.search(rf'= {layer}\S* (copy|slice|transpose)\(', line)]
    assert not [line for line in loop if re.search(rf'= {layer}\S* fusion\(.*calls=%?\S*(slice|copy)', line)]
    whole, memory = sum(x.nbytes for x in jax.tree.leaves(cache)), program.memory_analysis()
    assert memory.alias_size_in_bytes >= whole  # donated: updated in place
    assert memory.temp_size_in_bytes < (whole / 4 if span == 512 else 1.1 * whole)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_programs_are_given_one_array_a_layer_in_their_dtype(dtype):
    """Or they would slice and cast them: on a GPU for every token."""
    made = engine(slots=4, dtype=dtype)
    layers = made._params['layers']
    assert isinstance(layers, tuple) and len(layers) == TINY.num_layers
    assert {x.dtype for x in jax.tree.leaves(made._params)} == {jnp.dtype(dtype)}
    made.unload()
    with pytest.raises(RuntimeError, match=r'call load\(\) first'):
        made.step()


def test_adapters_are_not_merged_into_weights_that_would_lose_them():
    with jax.set_mesh(MESH):
        adapter = sharding.init(lora.layout(TINY, 2), jax.random.key(1), MESH)
        adapted = lora.combine(
            params(), jax.tree.map(lambda w: 1e-3 * jax.random.normal(jax.random.key(2), w.shape), adapter)
        )
        kept = {dtype: programs.serving_layout(adapted, dtype=dtype)['layers'][0] for dtype in ('float32', 'bfloat16')}
    assert ('q_lora_a' in kept['bfloat16'], 'q_lora_a' in kept['float32']) == (True, False)


def test_misuse_is_refused_and_harmless():
    one = engine(slots=4, steps=2)
    asked = Request('a', prompt(5), key(0), 6)
    one.open(asked)
    with pytest.raises(ValueError, match="'a' is already open"):
        one.open(asked)  # still waiting
    one.step()
    with pytest.raises(ValueError, match="'a' is already open"):
        one.open(asked)
    with pytest.raises(ValueError, match="'a' has not stopped"):
        one.extend('a', (1, 2), 3)
    with pytest.raises(ValueError, match="'a' has not stopped"):
        one.close('a')
    for prompt_, budget in [((), 3), ((1,), 0)]:
        with pytest.raises(ValueError, match="'b' needs a prompt and a budget"):
            one.open(Request('b', prompt_, key(0), budget))
    with pytest.raises(KeyError):
        one.close('b')
    with pytest.raises(KeyError):
        one.extend('b', (1,), 1)
    done = drain(one, close=False)
    assert_same(done, drain(engine(), [asked]))
    with pytest.raises(ValueError, match='budget of at least one'):
        one.extend('a', (1, 2), 0)
    one.close('a')
    assert_same(drain(one, [asked]), done)  # the handle is free again
