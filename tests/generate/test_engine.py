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
from zerosearch_jax.generate import programs, serving
from zerosearch_jax.generate.capacity import STEP, shapes
from zerosearch_jax.generate.engine import Engine, Request, Stopped
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.generate.sampling import Truncation
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models import lora, transformer
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


@pytest.mark.thorough
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


def test_a_request_may_have_a_temperature_of_its_own():
    asked, greedy = requests((5, 9), 8), requests((5, 9), 8, temperature=0.0)
    warm, cold = (tokens(drain(engine(t, slots=2), asked)) for t in (0.7, 0.0))
    assert warm != cold == tokens(drain(engine(0.7, slots=2), greedy))
    mixed = tokens(drain(engine(0.7, slots=2), [asked[0], greedy[1]]))
    assert mixed == {0: warm[0], 1: cold[1]}


def test_new_tokens_are_heard_at_every_look():
    talker, on_tokens = engine(0.7, slots=2), {}
    talker.listen(lambda handle, fresh: on_tokens.setdefault(handle, []).append(fresh))
    for request in requests((5, 3, 9), 10):
        talker.open(request)
    done = {}
    while talker.active:
        for result in talker.step():
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


@pytest.mark.thorough
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


def group(size, keys):
    return [Request(i, prompt(37), key(keys[i]), 10) for i in range(size)]


def test_group_members_differ_and_equal_keys_agree():
    done = tokens(drain(engine(), group(6, [0, 1, 2, 3, 4, 0])))
    assert done[5] == done[0]
    assert len(set(done.values())) == 5


@pytest.mark.thorough
def test_shared_prefill_equals_separate_prefills():
    shared, separate = engine(slots=4), engine(slots=4)  # more members than slots
    asked, alone = group(9, list(range(9))), {}
    for request in asked:
        alone |= drain(separate, [request])
    assert_same(drain(shared, asked), alone)
    assert (shared.prefilled_tokens, separate.prefilled_tokens) == (36, 9 * 36)


def test_shared_prefill_from_a_member_in_its_second_turn():
    shared = engine(slots=4)
    drain(shared, group(1, [0]), close=False)
    shared.extend(0, prompt(20, 3), 5)
    late = dataclasses.replace(group(2, [0, 1])[1], handle='late')
    done = drain(shared, [late])
    assert shared.prefilled_tokens == 36 + 20  # the late member was not prefilled
    assert done['late'].tokens == drain(engine(), [late])['late'].tokens


@pytest.mark.thorough
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


@pytest.mark.thorough
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


def beginnings():
    """Prompts that begin alike for 0, 15, 16, 70 and all tokens, some of them longer than others."""
    start, asked = prompt(90, 5), []
    for i, (cut, rest) in enumerate([(90, 0), (0, 50), (15, 30), (16, 30), (70, 1), (70, 40), (90, 0), (89, 3)]):
        other = (start[cut] + 1,) if rest else ()
        asked.append(Request(i, (*start[:cut], *other, *prompt(rest, 60 + i)), key(i), 9))
    return asked


@pytest.mark.thorough
@pytest.mark.parametrize('slots', [1, 2, 8])
def test_what_prompts_have_in_common_is_written_once(slots):
    """Copied from a slot that still runs, from one that is written in the same step, or taken over in a freed one."""
    asked, alone = beginnings(), {}
    for request in asked:
        alone |= drain(engine(slots=4), [request])
    together = engine(slots=slots)
    assert_same(drain(together, asked), alone)
    everything = sum(len(r.prompt) - 1 for r in asked)
    assert together.prefilled_tokens <= everything - 250
    again = together.prefilled_tokens
    assert_same(drain(together, asked), alone)  # nothing is known of what was there before all slots were free
    assert together.prefilled_tokens == 2 * again


def test_capacity_is_rounded_up_to_the_step():
    assert [engine(slots=4, capacity=c).capacity for c in (1, 128, 129)] == [128, 128, 256]


def test_on_cpu_many_rows_read_the_half_of_a_slot_and_few_the_whole():
    assert shapes(MESH, 16, 768).decode == shapes(MESH, 64, 768).decode == ((4, 768), (8, 640), (16, 384))
    assert shapes(MESH, 5, 512).decode == ((2, 512), (3, 384), (5, 256))
    assert shapes(MESH, 1, 128).decode == ((1, 128),)


def test_a_byte_budget_bounds_the_slots():
    capacity = 512
    each = kv.slot_bytes(TINY, MESH, capacity, jnp.float32)
    assert each == sum(x.nbytes for x in jax.tree.leaves(kv.create(TINY, MESH, 1, capacity)))
    held = 2 * capacity - STEP  # more than decoding ever copies
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


@pytest.mark.thorough
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


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: COMPILED.append(name) if name.endswith('backend_compile_duration') else None
)


@pytest.mark.thorough
@pytest.mark.parametrize('mesh', [(1, 1, 1), (2, 2, 2), (1, 4, 1)])
@pytest.mark.parametrize('ranks', [(0,), (2, 3)], ids=str)
def test_all_programs_are_few_and_compiled_ahead(mesh, ranks):
    """At most five, on CPU and on accelerators, whose shapes a mesh has; and in steps none, whatever the lengths."""
    mesh, rng = make_mesh(mesh), np.random.default_rng(0)
    roles = tuple(Role(8, stops=i == 0) for i in range(len(ranks)))
    # a vocabulary and steps of no other test
    made = Slots(TINY, mesh, roles, capacity=512, stop=helpers.NO_STOPS, eos_ids=(), decode_steps=5 + len(ranks))
    layouts = [lora.layout(TINY, rank) if rank else {'layers': {}} for rank in ranks]
    before = len(COMPILED)
    abstract = [sharding.abstract(layout, mesh) for layout in (transformer.layout(TINY), *layouts)]
    made.compile_ahead(abstract[0], [adapter['layers'] for adapter in abstract[1:]])
    made.wait()
    assert 0 < len(COMPILED) - before <= 5
    base = tiny_params(mesh)
    engines = [Engine(made, role) for role in range(len(ranks))]
    for role, one in enumerate(engines):
        one.load(lora.combine(base, sharding.init(layouts[role], jax.random.key(role), mesh)))
    made._weights.get(range(len(ranks)))
    before = len(COMPILED)
    for one in engines:
        for wave in range(2):
            asked = requests(rng.integers(1, 400, 12), int(rng.integers(1, 30)))
            drain(one, [dataclasses.replace(r, handle=(wave, r.handle, j)) for r in asked for j in range(2)])
    assert len(COMPILED) == before


@pytest.mark.parametrize('span', [384, 512])
def test_a_decode_step_copies_no_cache(span):
    """In the compiled program: the loop has no copy of a layer's keys or values, and a whole span needs no room."""
    with jax.set_mesh(MESH):
        cache = kv.create(TINY, MESH, 16, 512)
        program = programs.decode.lower(
            *(serving.base_layout(params(), TINY, MESH, dtype=jnp.float32), cache, programs.idle_rows(16), None),
            jnp.zeros((1, TINY.vocab_size), jnp.int32),
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
    weights = made._slots._weights.get([0])
    assert isinstance(weights['layers'], tuple) and len(weights['layers']) == TINY.num_layers
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype(dtype)}
    made.unload()
    with pytest.raises(RuntimeError, match=r'call load\(\) first'):
        made.step()


def test_adapters_are_not_merged_into_weights_that_would_lose_them():
    def held(dtype):
        made = engine(slots=4, dtype=dtype)
        made.load(lora.combine(params(), adapter(1)))
        return made._slots._weights.get([0])['layers'][0]

    assert ('qkv_lora_a' in held('bfloat16'), 'qkv_lora_a' in held('float32')) == (True, False)


# ---------------------------------------------------------------- two roles, one base


def adapter(seed, rank=2, targets=lora.TARGETS):
    layout = lora.layout(TINY, rank, targets)
    return {
        'layers': {
            name: 0.3 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), p.shape)
            for i, (name, p) in enumerate(layout['layers'].items())
        }
    }


ADAPTERS = adapter(1), adapter(2, rank=3, targets=('q', 'v', 'up', 'down'))
TEMPERATURES = 1.0, 0.6
STRINGS = ('aabab', 'bbbabb')


def two_roles(slots=(4, 3), dtype=jnp.float32, **kw):
    _, table = letter_stops(STRINGS)
    roles = Role(slots[0]), Role(slots[1], stops=False)
    made = Slots(TINY, MESH, roles, capacity=256, stop=table, eos_ids=(), decode_steps=4, dtype=dtype, **kw)
    policy, simulator = Engine(made, 0), Engine(made, 1)
    simulator.load(ADAPTERS[1], temperature=TEMPERATURES[1])  # before the base is there
    policy.load(lora.combine(params(), ADAPTERS[0]), temperature=TEMPERATURES[0])
    return policy, simulator


def apart(role):
    """What an engine of its own samples for a role."""
    stops = letter_stops(STRINGS)[1] if role == 0 else helpers.NO_STOPS
    made = engine(slots=4, stops=stops)
    made.load(lora.combine(params(), ADAPTERS[role]), temperature=TEMPERATURES[role])
    return made


def asked_of(role, count=7):
    return [Request(i, prompt(20 + 9 * i, i), key(100 * role + i), 24) for i in range(count)]


@pytest.mark.thorough
def test_two_roles_of_one_base_sample_what_engines_of_their_own_do():
    """Under their own adapter, temperature and stop strings, whoever steps; equal handles and prompts do not meet."""
    engines, done = two_roles(), ({}, {})
    for role, one in enumerate(engines):
        for request in asked_of(role):
            one.open(request)
    turn = 0
    while any(one.active for one in engines):
        role, turn = turn % 2, turn + 1
        for stopped in engines[role].step():
            done[role][stopped.handle] = stopped
            if len(done[role]) % 2:  # some go on first
                engines[role].extend(stopped.handle, prompt(6, role), 5)
                done[role][stopped.handle, 'again'] = stopped
            else:
                engines[role].close(stopped.handle)
    for role in (0, 1):
        firsts = {h: r for h, r in done[role].items() if (h, 'again') not in done[role] and not isinstance(h, tuple)}
        firsts |= {h[0]: r for h, r in done[role].items() if isinstance(h, tuple)}
        assert_same(firsts, drain(apart(role), asked_of(role)))
    assert {r.reason for r in done[0].values()} > {'length'} and {r.reason for r in done[1].values()} == {'length'}


def test_a_role_is_given_its_own_and_the_other_waits_for_its_step():
    policy, simulator = two_roles()
    policy.open(Request('p', prompt(5), key(0), 4))
    simulator.open(Request('s', prompt(6), key(1), 4))
    assert (policy.active, simulator.active) == (2, 2)
    assert [stopped.handle for stopped in policy.step()] == ['p']
    assert (policy.active, simulator.active) == (0, 1)
    tokens = simulator.decoded_tokens
    assert [stopped.handle for stopped in simulator.step()] == ['s']
    assert (policy.active, simulator.active, simulator.decoded_tokens) == (0, 0, tokens)


def test_a_role_never_takes_the_slots_of_the_other():
    """Or searches would wait for slots that the trajectories which wait for them hold."""
    policy, simulator = two_roles(slots=(2, 1))
    for i in range(3):
        policy.open(Request(i, prompt(5, i), key(i), 4))
    assert len(policy.step()) == 2 and policy.active == 0
    simulator.open(Request('s', prompt(6), key(1), 4))
    assert [stopped.handle for stopped in simulator.step()] == ['s']


def test_the_base_is_held_once_and_kept_while_one_role_is_unloaded():
    policy, simulator = two_roles()
    before = policy._slots._weights.get([0, 1])['layers'][0]['o']
    policy.unload()
    policy.open(asked_of(0)[0])
    with pytest.raises(RuntimeError, match=r'call load\(\) first'):
        policy.step()
    policy._slots._open.clear()
    policy.load(lora.combine(params(), ADAPTERS[0]), temperature=TEMPERATURES[0])
    assert policy._slots._weights.get([0, 1])['layers'][0]['o'] is before
    assert simulator._slots is policy._slots


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
