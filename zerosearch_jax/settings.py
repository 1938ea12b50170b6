"""Strict settings: a two-level `ml_collections.ConfigDict` becomes frozen dataclasses, or one clear error.

    config.rl = {algorithm: 'grpo', clip: 0.2}  ->  RL(algorithm='grpo', clip=0.2)

Field types may be bool, int, float, str, None, `Literal`, unions, `tuple[X, ...]` and `list[X]`. An int is
accepted for a float and a list for a tuple; a bool is never an int.
"""

import dataclasses
import difflib
import importlib
import json
import math
import re
import types
import typing
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

T = TypeVar('T')


# the numbers that may be negative: then the KL divergence is rewarded, or entropy is penalized
SIGNED = ('config.rl.kl', 'config.rl.entropy')


def section(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds the dataclass `cls` from one config section, checking names and types.

    Args:
      cls: a dataclass; fields without a default are required.
      values: the section, a ConfigDict or any mapping.
      where: name of the section in errors, for example 'config.rl'.

    Raises:
      ValueError: an unknown key (with the nearest field), a missing one, a value of another type, a negative number
        that is not in SIGNED, or a value that the dataclass itself refuses.
    """
    if not hasattr(values, 'keys'):
        raise ValueError(f'{where} must be a section, got {_shown(values)}')
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    _check_names(values, fields, where)
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f'{where}.{name} is missing; it must be {type_name(hints[name])}')
    checked = {name: _checked(values[name], hints[name], f'{where}.{name}') for name in values}
    for name, value in checked.items():
        if type(value) in (int, float) and not math.isfinite(value):
            raise ValueError(f'{where}.{name} must be finite, got {value}')
        if type(value) in (int, float) and value < 0 and f'{where}.{name}' not in SIGNED:
            raise ValueError(f'{where}.{name} must not be negative, got {value}')
    try:
        return cls(**checked)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error


def resolve(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a whole config against `{top-level key: type or dataclass}`.

    A section that is missing is built from the defaults of its dataclass; a scalar is required.

    Returns:
      `{key: value or dataclass instance}` in the order of the schema.

    Raises:
      ValueError: as `section`.
    """
    _check_names(config, schema, 'config')
    resolved = {}
    for name, kind in schema.items():
        where = f'config.{name}'
        if dataclasses.is_dataclass(kind):
            resolved[name] = section(kind, config.get(name, {}), where)
        elif name in config:
            resolved[name] = _checked(config[name], kind, where)
        else:
            raise ValueError(f'{where} is missing; it must be {type_name(kind)}')
    return resolved


def build(cls: type[T], config: Mapping[str, Any]) -> T:
    """The whole configuration as `cls`, a dataclass with one dataclass for each section; raises as `resolve`."""
    resolved = resolve(config, typing.get_type_hints(cls))
    if resolved.get('seed', 0) < 0:
        raise ValueError(f'config.seed must not be negative, got {resolved["seed"]}')
    return cls(**resolved)


def resolve_name(name: str, known: Mapping[str, Any], field: str) -> Any:
    """The entry of `known` with this name or, by a dotted name, `package.module.name`, an object of the user's.

    Raises:
      ValueError: the name is not known, and it cannot be imported.
    """
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition('.')
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything when it is imported
        ours = ', '.join(map(repr, known))
        raise ValueError(f'{field} = {name!r} is none of {ours}, and cannot be imported ({error})') from error


def resolve_file(cls: type[T], name: str, known: Mapping[str, T], field: str) -> T:
    """The entry of `known` with this name, or the content of a JSON file with the fields of `cls`.

    Raises:
      FileNotFoundError: `name` is neither known nor a file.
      ValueError: the file has other fields, or `cls` refuses them.
    """
    if name in known:
        return known[name]
    if not Path(name).is_file():
        raise FileNotFoundError(f'{field} = {name!r} is no file, and none of {", ".join(map(repr, known))}')
    return section(cls, read_json(name), f'{name}: {field}')


def parse_json(text: str | bytes) -> Any:
    """Parses JSON from others; any defect of it is a ValueError, also nesting that is too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('nested too deep') from None


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object from a file that others wrote.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is empty, truncated, no JSON, or no object; the message names the file.
    """
    try:
        value = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error}); it may be truncated, or the wrong file') from error
    if not isinstance(value, dict):
        raise ValueError(f'{path} must hold a JSON object, not a {type(value).__name__}')
    return value


# patterns of keys in addresses: the user before the host, and parameters with these names
_USER = re.compile(r'(?<=://)[^/\s"\'?#]+@')
_SECRET = re.compile(
    r'([?&;#](?:(?:[\w.-]*[_.-])?(?i:api_?key|key|token|secret|passw(?:or)?d|pwd|auth|code|credentials?|sig|signature)'
    r'|\w*(?:Key|Token|Secret|Password|Credential|Signature))=)([^&;\s"\'#<>)]+)'
)
_BEARER = re.compile(r'(\bBearer\s+|\bAuthorization\W{1,4}Basic\s+)[^\s"\']+', re.IGNORECASE)


def redacted(text: str) -> str:
    """A text without the keys in its addresses and headers, which can be written, shown or sent."""
    return _BEARER.sub(r'\1***', _SECRET.sub(r'\1***', _USER.sub('***@', text)))


def secrets(address: str) -> list[str]:
    """The password and the keys in the parameters of an address, as they are written and decoded."""
    found = [match[2] for match in _SECRET.finditer(address)]
    found += filter(None, (match[0][:-1].partition(':')[2] for match in _USER.finditer(address)))
    return [*found, *map(urllib.parse.unquote, found)]


def to_json(config: Any) -> str:
    """The config (ConfigDict, mapping or `resolve`'s result) as sorted JSON, references resolved, without keys."""
    return redacted(json.dumps(_plain(config), indent=2, sort_keys=True))


# fields that change no result, or only its rounding: devices and memory, access to remote services, prices
MAY_CHANGE = (
    'prices',
    'mesh',
    'run.wandb',
    'sft.wandb',
    'sft.checkpoint_every',
    *(f'{role}.{name}' for role in ('rollout', 'simulator', 'judge') for name in ('slots', 'mesh', 'cache_gib')),
    # a run that began with 'refuse' has no question to leave out
    *(f'{section}.{name}' for section in ('data', 'evaluation') for name in ('unscorable', 'too_long')),
    *(f'rl.{name}' for name in ('rows_per_micro', 'remat', 'chunk')),
    *(f'sft.{name}' for name in ('rows_per_micro', 'remat', 'chunk')),
    *(f'engine.{name}' for name in ('url', 'timeout_s', 'retries', 'pause_s', 'concurrency', 'per_second')),
    *(f'engine.{name}' for name in ('query_price', 'spending_cap', 'fields')),
    *(f'endpoint.{name}' for name in ('url', 'timeout_s', 'retries', 'concurrency')),
)


# fields that the completed steps of a training do not depend on: steps in total, files, evaluations, alarms
MAY_CHANGE_IN_A_RUN = (*MAY_CHANGE, 'rl.steps', 'run', 'evaluation', 'alarms')


def is_named(field: str, names: Iterable[str]) -> bool:
    """Whether a dotted field, or its section, is among the names."""
    return field in names or field.partition('.')[0] in names


def require_positive(section: Any, *names: str) -> None:
    """Raises ValueError if one of these fields of a section is less than 1."""
    for name in names:
        if getattr(section, name) < 1:
            raise ValueError(f'{name} must be positive, got {getattr(section, name)}')


def with_defaults(config: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """A configuration that an earlier version wrote, with the present defaults for fields that it did not have."""
    filled = dict(config)
    for name, kind in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
            filled[name] = defaults | filled.get(name, {})
    return filled


def changes(old: Mapping[str, Any], new: Mapping[str, Any], free: Iterable[str] = ()) -> dict[str, str]:
    """The fields in which two configurations differ, without those in `free`, as JSON values.

    Returns:
      {'rl.clip': 'rl.clip = 0.3 (it was 0.2)'}.
    """
    before, after = _fields(old), _fields(new)
    return {
        name: f'{name} = {_valued(after, name)} (it was {_valued(before, name)})'
        for name in {**before, **after}
        if _valued(before, name) != _valued(after, name) and not is_named(name, free)
    }


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """{'section.field': value}."""
    found = {}
    for key, value in config.items():
        parts = {f'{key}.{name}': item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
        found |= parts
    return found


def _valued(fields: Mapping[str, Any], name: str) -> str:
    return redacted(json.dumps(fields[name])) if name in fields else 'not set'


def _check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f'did you mean {near[0]!r}?' if near else f'it has {", ".join(known) or "none"}'
            raise ValueError(f'{where} has no field {name!r}; {hint}')


def _checked(value: Any, hint: Any, where: str) -> Any:
    try:
        return _convert(value, hint)
    except _Mismatch:
        raise ValueError(f'{where} must be {type_name(hint)}, got {_shown(value)}') from None


class _Mismatch(Exception):
    """A value does not have the declared type."""


def _convert(value: Any, hint: Any) -> Any:
    """The value as the type `hint`; raises _Mismatch if it is not one, TypeError if hints like it are unknown."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        # a member of exactly this type comes first, so that 3 stays an int in `float | int`
        for member in sorted(args, key=lambda member: member is not type(value)):
            try:
                return _convert(value, member)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        raise _Mismatch
    if origin in (tuple, list):
        return _convert_sequence(value, origin, args)
    if hint is float and type(value) is int:
        return float(value)
    if hint is type(None) or hint is None:
        hint = type(None)
    elif hint not in (bool, int, float, str):
        raise TypeError(f'settings do not support fields of type {hint}')
    if type(value) is not hint:
        raise _Mismatch
    return value


def _convert_sequence(value: Any, kind: type, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        raise _Mismatch
    if kind is list or args[-1] is Ellipsis:
        args = args[:1] * len(value)
    if len(args) != len(value):
        raise _Mismatch
    return kind(_convert(item, arg) for item, arg in zip(value, args, strict=True))


def type_name(hint: Any) -> str:
    """The type as one would write it: `float | None`, `'ppo' | 'grpo'`, `tuple[int, ...]`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return ' | '.join(map(type_name, args))
    if origin is Literal:
        return ' | '.join(map(repr, args))
    if origin in (tuple, list):
        return f'{origin.__name__}[{", ".join("..." if a is Ellipsis else type_name(a) for a in args)}]'
    return 'None' if hint in (None, type(None)) else hint.__name__


def _shown(value: Any) -> str:
    return f'{redacted(repr(value))} ({type(value).__name__})'


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, 'keys'):  # a ConfigDict is no Mapping; access by key resolves its references
        return {key: _plain(value[key]) for key in value.keys()}  # noqa: SIM118
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
