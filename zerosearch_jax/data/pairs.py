"""What a simulator is fine-tuned on: pairs of a request and the documents to write, or recorded searches.

Rows come from JSONL, parquet or the hub, as questions do, in one of these forms:

    pair            prompt, completion   (or instruction, input, output; or messages of a user and an assistant)
    search          query, question, golden_answers, and documents (texts) or doc_ids (of a corpus)
    useful/noisy    query, golden_answers, and useful, noisy: ids of passages that do, or do not, help to answer it

A pair's label is its field `label`; without one, the first word of the request's last line, which is where the
published requests have it. `fold` is optional, and keeps questions for training and for reports apart.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from zerosearch_jax.data import rows
from zerosearch_jax.data.rows import Passage, Question

LABELS = ('useful', 'noisy')
PAIR_FIELDS = (('prompt', 'completion'), ('instruction', 'output'))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A request and what the simulator is to write, word for word."""

    id: str
    prompt: str
    completion: str
    label: str  # 'useful', 'noisy', or '' where nothing tells


@dataclasses.dataclass(frozen=True)
class RecordedSearch:
    """A search that was made: who asked for what, and the passages that came back."""

    id: str
    question: Question
    query: str
    passages: tuple[Passage, ...]
    label: str


def load_pairs(
    source: str,
    split: str = 'train',
    *,
    corpus: Mapping[str, Passage] | None = None,
    label: str = 'label',
    folds: tuple[int, ...] = (),
) -> list[Pair | RecordedSearch]:
    """Reads every row of a source that has a label, in its order.

    Args:
      source: as `sources.load_questions` takes it, but for `world` and `tfds:`.
      split: for `hub:`.
      corpus: passages by id, where rows name their documents.
      label: the field of searches that says 'useful' or 'noisy'; rows where it is null are left out.
      folds: keep only the rows of these folds; (): all rows.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a row of no known form, or with a wrong value; the message starts with `file:line:`.
    """
    name, stem, found = rows.open_rows(source, split)
    read: list[Pair | RecordedSearch] = []
    for where, line, row in rows.numbered_rows(name, found):
        if folds and _fold(row, where) not in folds:
            continue
        read += _row(row, where, str(row.get('id') or f'{stem}-{line}'), corpus or {}, label)
    return read


def _fold(row: dict, where: str) -> int:
    if type(row.get('fold')) is not int:
        raise ValueError(f'{where}: no number in "fold", but config.demos asks for some folds; leave them out')
    return row['fold']


def _row(
    row: dict, where: str, name: str, corpus: Mapping[str, Passage], label: str
) -> Iterator[Pair | RecordedSearch]:
    if 'messages' in row or any(set(fields) <= row.keys() for fields in PAIR_FIELDS):
        yield _pair(row, where, name)
        return
    searched = {'query', 'golden_answers'} <= row.keys()
    if searched and set(LABELS) <= row.keys():
        found = [(f'{name}-{quality}', _named(row[quality], corpus, where, quality), quality) for quality in LABELS]
    elif searched and label in row and row.keys() & {'documents', 'doc_ids'}:
        found = [(name, _passages(row, corpus, where), _label(row, label, where))]
    else:
        raise ValueError(
            f'{where}: the fields {", ".join(sorted(row))} are no known form; expected prompt and completion, or '
            f'query, golden_answers, {label} and documents (or doc_ids)'
        )
    query, question = rows.require_text(row['query'], 'query', where), _question(row, where, name)
    if question.golden_answers:  # none is left where no prediction could be scored against them
        yield from (RecordedSearch(i, question, query, passages, quality) for i, passages, quality in found if quality)


def _label(row: dict, field: str, where: str) -> str:
    if row.get(field) not in (None, *LABELS):
        raise ValueError(f'{where}: {field!r} is {row[field]!r}, expected "useful" or "noisy"')
    return row.get(field) or ''


def _pair(row: dict, where: str, name: str) -> Pair:
    if 'messages' in row:
        prompt, completion = _messages(row['messages'], where)
    elif 'instruction' in row:
        parts = [row[field] for field in ('instruction', 'input') if row.get(field)]
        prompt = rows.require_text('\n'.join(map(str, parts)), 'instruction', where)
        completion = rows.require_text(row.get('output'), 'output', where)
    else:
        prompt, completion = (rows.require_text(row.get(field), field, where) for field in ('prompt', 'completion'))
    first_word = next(iter(prompt.strip().split('\n')[-1].lower().split()), '')
    label = _label(row, 'label', where) or (first_word if first_word in LABELS else '')
    return Pair(name, prompt, completion, label)


def _messages(messages, where: str) -> tuple[str, str]:
    try:
        texts = {message['role']: message['content'] for message in messages if message['content']}
        return tuple(rows.require_text(texts[role], role, where) for role in ('user', 'assistant'))
    except (TypeError, KeyError) as error:
        raise ValueError(
            f'{where}: "messages" needs one of role user and one of role assistant, with content'
        ) from error


def _question(row: dict, where: str, name: str) -> Question:
    return rows.as_question({'question': row['query'], **row}, where, name, skip_unscorable=True)


def _passages(row: dict, corpus: Mapping[str, Passage], where: str) -> tuple[Passage, ...]:
    if 'doc_ids' in row:
        return _named(row['doc_ids'], corpus, where, 'doc_ids')
    if not isinstance(row['documents'], list):
        raise ValueError(f'{where}: "documents" must be a list of texts')
    texts = (rows.require_text(text, 'documents', where) for text in row['documents'])
    return tuple(Passage(f'{where}-{i}', '', text) for i, text in enumerate(texts))


def _named(ids, corpus: Mapping[str, Passage], where: str, field: str) -> tuple[Passage, ...]:
    if not isinstance(ids, list):
        raise ValueError(f'{where}: "{field}" must be a list of ids of passages')
    ids = [str(i) if type(i) is int else i for i in ids]  # as rows reads the ids of passages
    unknown = [i for i in ids if i not in corpus]
    if unknown:
        hint = 'name the corpus in config.demos.corpus' if not corpus else 'is it the right corpus?'
        raise ValueError(f'{where}: passage {unknown[0]!r} of "{field}" is not in the corpus; {hint}')
    return tuple(corpus[i] for i in ids)
