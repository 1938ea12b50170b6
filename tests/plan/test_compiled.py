"""What is read from the text of compiled programs."""

import jax
import jax.numpy as jnp

from zerosearch_jax.plan import compiled

TEXT = """HloModule jit_f, is_scheduled=true

%inside (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %a = f32[8]{0} exponential(%p.1)
  ROOT %b = f32[8]{0} add(%a, %p.1)
}

%body (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %carry = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0:T(8)} get-tuple-element(%carry), index=1
  %i = s32[] get-tuple-element(%carry), index=0
  %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%inside
  %start = (f32[8]{0}, f32[8]{0}) all-reduce-start(%y), replica_groups={}, to_apply=%inside
  %z = f32[8]{0} all-reduce-done(%start)
  %w = (f32[8]{0}, s8[4]{0}) custom-call(%z), custom_call_target="__cublas$gemm"
  %v = f32[8]{0} get-tuple-element(%w), index=0
  ROOT %out = (s32[], f32[8]{0}) tuple(%i, %v)
}

%condition (carry.1: (s32[], f32[8])) -> pred[] {
  %carry.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %q = f32[8]{0} copy(%p)
  %first = (s32[], f32[8]{0}) tuple(%zero, %q)
  %loop = (s32[], f32[8]{0}) while(%first), condition=%condition, body=%body, KNOWN
  ROOT %r = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_kernels_are_counted_as_often_as_they_are_launched():
    """A copy, and in each of five turns a fusion, a collective and a product; nothing of what lies in a fusion."""
    assert compiled.kernels(TEXT.replace('KNOWN', 'backend_config={"known_trip_count":{"n":"5"}}')) == 1 + 5 * 3
    assert compiled.kernels(TEXT) == 1 + 3


def test_kernels_of_a_program_that_is_compiled_here():
    def loop(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y @ y), x)

    few = compiled.kernels(jax.jit(lambda x: jnp.sin(x @ x)).lower(jnp.ones((64, 64))).compile().as_text())
    many = compiled.kernels(jax.jit(loop).lower(jnp.ones((64, 64))).compile().as_text())
    assert few >= 1 and 7 * few <= many
