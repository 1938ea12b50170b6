"""Parses compiled HLO text: its computations, how often they run, and what their kernels read and write."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {'pred': 8, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 'bf16': 16, 'f16': 16, 's32': 32, 'u32': 32, 'f32': 32}


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """{name: lines} of a module's computations, and the name of its entry."""
    bodies: dict[str, list[str]] = {}
    name = entry = ''
    for line in text.splitlines():
        if begins := re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line):
            name = begins[2]
            bodies[name] = []
            entry = name if begins[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def calls(line: str, bodies: Mapping[str, list[str]], turns: int = 1) -> Iterator[tuple[str, int]]:
    """(computation, times) that an instruction runs, without the functions of reductions and sorts."""
    if ' while(' in line:
        known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
        condition, body = (re.search(rf'{name}=%?([\w.-]+)', line)[1] for name in ('condition', 'body'))
        yield body, int(known[1]) if known else _turns(bodies[condition], bodies[body]) or turns
    elif several := re.search(r'branch_computations=\{([^}]*)\}', line):
        yield from ((name.strip().lstrip('%'), 1) for name in several[1].split(','))
    else:
        names = re.findall(r'(?:calls|true_computation|false_computation)=%?([\w.-]+)', line)
        if re.search(r' (?:call|async-start)\(', line):
            names += re.findall(r'to_apply=%?([\w.-]+)', line)
        yield from ((name, 1) for name in dict.fromkeys(names))


def _turns(condition: list[str], body: list[str]) -> int:
    """The length of a loop that counts from 0 to a constant, if the compiler does not state it; 0 for other loops."""
    compared = re.search(r' compare\(%?([\w.-]+), %?([\w.-]+)\), direction=LT', _root(condition))
    end = _constant(compared[2], condition) if compared else None
    return -(-end // _stride(compared[1], condition, body)) if end else 0


def _stride(counter: str, condition: list[str], body: list[str]) -> int:
    """What an iteration adds to the counter in a loop's condition; 1 if that is not found."""
    place = re.search(r'get-tuple-element\(.*\), index=(\d+)', _definition(counter, condition))
    results = re.findall(r'%([\w.-]+)', _root(body).partition(' tuple(')[2])
    if not place or int(place[1]) >= len(results):
        return 1
    added = re.search(r' add\(%?[\w.-]+, %?([\w.-]+)\)', _definition(results[int(place[1])], body))
    return (added and _constant(added[1], body)) or 1


def _root(lines: list[str]) -> str:
    return next((line for line in lines if line.lstrip().startswith('ROOT ')), '')


def _definition(name: str, lines: list[str]) -> str:
    return next((line for line in lines if re.match(rf'\s*(?:ROOT )?%?{re.escape(name)} = ', line)), '')


def _constant(name: str, lines: list[str]) -> int | None:
    found = re.search(r' = [su]32\[\]\S* constant\((\d+)\)', _definition(name, lines))
    return int(found[1]) if found else None


# ---------------------------------------------------------------- kernels

# instructions that launch no kernel: values, control flow, the second half of asynchronous operations
NO_KERNEL = re.compile(
    'parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all|partition-id|replica-id|'
    'opt-barrier|domain|add-dependency|async-start|.*-update|.*-done'
)
PRODUCT = re.compile(r' (dot|convolution)\(|custom_call_target="(__cublas|__cudnn|__triton|tpu_custom_call)')


class Work(NamedTuple):
    """What a device does in one run of a program."""

    kernels: int = 0
    products: float = 0.0  # bytes that kernels with a matrix product read and write
    others: float = 0.0  # bytes that other kernels read and write


def work(text: str, turns: int = 1) -> Work:
    """The kernels of compiled HLO text, counted as often as they run; `turns`: of a loop of unknown length."""
    bodies, entry = computations(text)
    total = Work()

    def inside(line: str) -> str:
        return '\n'.join([line, *(inside(more) for name, _ in calls(line, bodies) for more in bodies[name])])

    def walk(name: str, times: int):
        nonlocal total
        sizes: dict[str, float] = {}
        for line in bodies[name]:
            match = re.match(r'\s*(?:ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)(?:, |$)', line)
            if not match:
                continue
            sizes[match[1]], result = _size(match[2]), match[2]
            fused = match[3] in ('fusion', 'fusion-start')
            for called, more in calls(line, bodies, turns):
                if fused:
                    result = re.search(r' = (.*?) [a-z][\w-]*\(', _root(bodies[called]))[1]
                else:
                    walk(called, times * more)
            if not NO_KERNEL.fullmatch(match[3]):
                whole, operands = inside(line), [sizes.get(name, 0.0) for name in re.findall(r'%([\w.-]+)', match[4])]
                if match[3].endswith('-start') and not fused:
                    operands = []  # the result holds them too
                moved = times * _traffic(whole, _size(result), operands)
                is_product = bool(PRODUCT.search(whole))
                started = times * (match[3] not in ('copy-start', 'slice-start'))  # a TPU runs these in the background
                more = Work(started, moved * is_product, moved * (not is_product))
                total = Work(*map(sum, zip(total, more, strict=True)))

    walk(entry, 1)
    return total


def _size(result: str) -> float:
    """Bytes of arrays in a device's memory, without a kernel's workspace and what a TPU holds on the chip (S(1))."""
    arrays = re.findall(r'(\w+)\[([\d,]*)\](?!\{[^}]*S\(1\))', result)
    if len(arrays) > 1:
        arrays = [(kind, dims) for kind, dims in arrays if kind not in ('s8', 'u8')]
    return sum(BITS.get(kind, 0) / 8 * math.prod(map(int, filter(None, dims.split(',')))) for kind, dims in arrays)


def _traffic(kernel: str, result: float, operands: list[float]) -> float:
    """Bytes that a kernel reads and writes; for an array that it slices or changes in place, those of the part."""
    if re.search(r'dynamic-update-slice\(|scatter\(', kernel):
        return 2 * sum(size for size in operands if size < max(operands))
    if re.search(r'slice\(|gather\(', kernel):
        operands = [min(size, result) for size in operands]
    return result + sum(operands)
