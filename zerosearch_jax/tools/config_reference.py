"""The reference of all configurations as a page, made from their dataclasses and the comments beside the fields.

python -m zerosearch_jax.tools.config_reference > docs/configuration.md
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import typing

from zerosearch_jax import settings
from zerosearch_jax.audit import audit, collect
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.tools import serve_search
from zerosearch_jax.train import config, sft

# what a launch.NAME takes; launch.plan takes what launch.train does
PROGRAMS = {
    'train': config,
    'sft': sft,
    'evaluate': evaluation,
    'ask': evaluation,
    'collect': collect,
    'audit_simulator': audit,
    'serve_search': serve_search,
}

_HEAD = """# Configuration reference

Made by `python -m zerosearch_jax.tools.config_reference > docs/configuration.md` from the dataclasses that the sections
become; what a field means is the comment beside it in the source.

Every field is a flag of its program, `--config.SECTION.FIELD=VALUE`; a file of `configs/` sets those that differ from
the defaults below. Unknown names, other types and values that a section refuses end the program with one line before
anything is loaded. `seed` is an integer; `mesh` has the sizes of data, fsdp and tensor, and -1 for the rest of the
devices. A study of `launch.sweep` (`configs/ablations/`) holds a configuration of `launch.train` as `base`, what each
of its `variants` changes, the name of the `baseline`, `seeds`, and the `pairs` of variants that are compared (without
it every one with the baseline). The whole configuration of a run is in its
`config.json`."""


class Section(typing.NamedTuple):
    """A dataclass, and where it is a section: (program, name of the section, comment there)."""

    cls: type
    uses: list[tuple[str, str, str]]


def page() -> str:
    """The page as Markdown."""
    found = sections()
    lines = [_HEAD, '', '| program | sections |', '|---|---|']
    for program in PROGRAMS:
        names = [f'[`{name}`](#{_anchor(s, found)})' for s in found for p, name, _ in s.uses if p == program]
        lines.append(f'| `launch.{program}` | {", ".join(names)} |')
    for section in found:
        lines += ['', *_section(section, found)]
    return '\n'.join(lines) + '\n'


def sections() -> list[Section]:
    """Every dataclass once, in the order in which the programs have them."""
    found: dict[type, Section] = {}
    for program, module in PROGRAMS.items():
        said = comments(module.Config)
        for name, kind in typing.get_type_hints(module.Config).items():
            if dataclasses.is_dataclass(kind):
                found.setdefault(kind, Section(kind, [])).uses.append((program, name, said[name]))
    return list(found.values())


def comments(cls: type) -> dict[str, str]:
    """What the comments say of each field of a dataclass: those on the lines above it and beside it; '' where none."""
    inherited = [comments(base) for base in cls.__bases__ if dataclasses.is_dataclass(base)]
    found = {name: text for base in inherited for name, text in base.items()}
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    texts = {t.start[0]: t.string.lstrip('#').strip() for t in tokens if t.type == tokenize.COMMENT}
    alone = {number for number in texts if source.splitlines()[number - 1].lstrip().startswith('#')}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            said = [texts[number] for number in range(first, node.end_lineno + 1) if number in texts]
            found[node.target.id] = ' '.join(said)
    return found


def _name(section: Section, found: list[Section]) -> str:
    """The names under which programs have a section; with its program where another section has that name too."""
    names = list(dict.fromkeys(name for _, name, _ in section.uses))
    others = {name for other in found if other is not section for _, name, _ in other.uses}
    return ', '.join(f'{name} of launch.{section.uses[0][0]}' if name in others else name for name in names)


def _anchor(section: Section, found: list[Section]) -> str:
    """As GitHub makes it of a heading."""
    return ''.join(c for c in _name(section, found).lower().replace(' ', '-') if c.isalnum() or c in '-_')


def _section(section: Section, found: list[Section]) -> list[str]:
    cls = section.cls
    hints, said = typing.get_type_hints(cls), comments(cls)
    uses = [f'`launch.{program}`' + (f' ({note})' if note else '') for program, _, note in section.uses]
    lines = [
        f'## {_name(section, found)}',
        '',
        f'{" ".join(inspect.getdoc(cls).split())} `{cls.__name__}` of `{cls.__module__.replace(".", "/")}.py`; '
        f'of {", ".join(dict.fromkeys(uses))}.',
        '',
        '| field | type, allowed values | default | |',
        '|---|---|---|---|',
    ]
    for field in dataclasses.fields(cls):
        kind = settings.type_name(hints[field.name])
        lines.append(f'| `{field.name}` | {_code(kind)} | {_code(repr(field.default))} | {_text(said[field.name])} |')
    return lines


def _code(text: str) -> str:
    return '`' + text.replace('|', '\\|') + '`'


def _text(text: str) -> str:
    return re.sub(r'defect D\d+', r'[\g<0>](differences.md)', text.replace('|', '\\|').replace('<', '&lt;'))


if __name__ == '__main__':
    print(page(), end='')
