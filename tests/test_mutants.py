"""The mutants are what they say: one change each, and the named ones can still be made."""

import mutants
import pytest


def test_every_mutant_is_one_change_within_the_functions():
    source = 'def f(a, b):\n    return a < b and -a + 1 > 0\n\ndef g(a):\n    return a + 1\n'
    found = mutants.mutants(source, 'f')
    assert {change.split('  ->  ')[1] for _, change, _ in found} == {
        'a < b or -a + 1 > 0', 'a <= b', '-a + 1 >= 0', '-a - 1', '+a', '2', '1',
    }  # fmt: skip
    assert all('a + 1\n' in mutated + '\n' and mutated != source for *_, mutated in found)


@pytest.mark.parametrize('module', sorted({module for module, *_ in mutants.NAMED} | mutants.MODULES.keys()))
def test_the_mutants_of_every_module_can_be_made(module):
    source = (mutants.ROOT / 'zerosearch_jax' / module).read_text()
    for _, _, mutated, tests in mutants.chosen(module, source):
        compile(mutated, module, 'exec')
        assert (mutants.ROOT / tests.split()[0]).exists()
