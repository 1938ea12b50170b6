"""Reads what a simulator is fine-tuned on: pairs of a request and the documents to write, or recorded searches.

Rows come from JSONL, parquet or the hub, as questions do, in one of these forms:

    pair            prompt, completion   (or instruction, input, output; or messages, the last one of the assistant)
    search          query, question, golden_answers, and documents (texts) or doc_ids (of a corpus)
    useful/noisy    query, golden_answers, and useful, noisy: ids of passages that help, or do not help, to answer it;
                    one of the two may be empty

A pair's label is its field `label` or, without one, the first word of the last line of the request, where the
published requests have it. `fold` is optional, and separates questions for training from held-out questions.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

from zerosearch_jax.data import rows
from zerosearch_jax.data.rows import Passage, Question

LABELS = ('useful', 'noisy')
PAIR_FIELDS = (('prompt', 'completion'), ('instruction', 'output'))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A request and the text that the simulator should write."""

    id: str
    prompt: str
    completion: str
    label: str  # 'useful', 'noisy', or '' if unknown
    history: tuple[Mapping[str, str], ...] = ()  # messages before the request: the system's, earlier turns


@dataclasses.dataclass(frozen=True)
class RecordedSearch:
    """A recorded search: its question, its query, and the passages that it returned."""

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
    control: Collection[str] = (),
) -> list[Pair | RecordedSearch]:
    """Reads every labelled row of a source, in its order, without searches whose answers cannot be scored.

    Args:
      source: as in `sources.load_questions`, except `world` and `tfds:`.
      split: for `hub:`.
      corpus: passages by id, if rows name their documents.
      label: the field of searches that is 'useful' or 'noisy'; rows in which it is null are left out.
      folds: keep only the rows of these folds; (): all rows.
      control: tokens that no text of a pair may contain, since the model would learn to spell them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a row of no known form, or with a wrong value; the message starts with `file:line:`.
    """

    def read(item: tuple[dict, str, str]) -> list[Pair | RecordedSearch]:
        row, where, _ = item
        if folds and _fold(row, where) not in folds:
            return []
        return [*_row(row, where, rows.row_id(*item), corpus or {}, label, control)]

    made = rows.usable(rows.read_rows(source, split), read, 'skip', f'{source}: answers that cannot be scored')
    return [item for items in made for item in items]


def _fold(row: dict, where: str) -> int:
    if type(row.get('fold')) is not int:
        raise ValueError(f'{where}: no number in "fold", but config.demos asks for some folds; leave them out')
    return row['fold']


def _row(
    row: dict, where: str, name: str, corpus: Mapping[str, Passage], label: str, control: Collection[str]
) -> Iterator[Pair | RecordedSearch]:
    if 'messages' in row or any(set(fields) <= row.keys() for fields in PAIR_FIELDS):
        yield _pair(row, where, name, control)
        return
    searched = {'query', 'golden_answers'} <= row.keys()
    if searched and set(LABELS) <= row.keys():
        there = [quality for quality in LABELS if row[quality] != []]
        found = [(f'{name}-{quality}', _named(row[quality], corpus, where, quality), quality) for quality in there]
    elif searched and label in row and row.keys() & {'documents', 'doc_ids'}:
        found = [(name, _passages(row, corpus, where), _label(row, label, where))]
    else:
        raise ValueError(
            f'{where}: the fields {", ".join(sorted(row))} are no known form; expected prompt and completion, or '
            f'query, golden_answers, {label} and documents (or doc_ids)'
        )
    query = rows.require_text(row['query'], 'query', where)
    question = rows.as_question({'question': query, **row}, where, name)
    yield from (RecordedSearch(i, question, query, passages, quality) for i, passages, quality in found if quality)


def _label(row: dict, field: str, where: str) -> str:
    if row.get(field) not in (None, *LABELS):
        raise ValueError(f'{where}: {field!r} is {row[field]!r}, expected "useful" or "noisy"')
    return row.get(field) or ''


def _pair(row: dict, where: str, name: str, control: Collection[str]) -> Pair:
    history: tuple[dict, ...] = ()
    if 'messages' not in row and (unread := [field for field in ('system', 'history') if row.get(field)]):
        raise ValueError(f'{where}: {unread[0]!r} is read only in "messages"; give the whole conversation there')
    if 'messages' in row:
        history, prompt, completion = _messages(row['messages'], where)
    elif 'instruction' in row:
        parts = [rows.require_text(row[field], field, where) for field in ('instruction', 'input') if row.get(field)]
        prompt = rows.require_text('\n'.join(parts), 'instruction', where)
        completion = rows.require_text(row.get('output'), 'output', where)
    else:
        prompt, completion = (rows.require_text(row.get(field), field, where) for field in ('prompt', 'completion'))
    texts = '\n'.join([*(message['content'] for message in history), prompt, completion])
    if written := next((token for token in control if token in texts), None):
        raise ValueError(
            f'{where}: a text holds {written!r}, a control token of the model, which only its chat template may write: '
            'remove it, or give the turns as "messages"'
        )
    first_word = next(iter(prompt.strip().split('\n')[-1].lower().split()), '')
    label = _label(row, 'label', where) or (first_word if first_word in LABELS else '')
    return Pair(name, prompt, completion, label, history)


def _messages(messages, where: str) -> tuple[tuple[dict, ...], str, str]:
    """The messages before the last request, that request, and its completion; an empty system message is dropped."""
    try:
        said = [(m['role'], m['content']) for m in messages if (m['role'], m['content']) != ('system', '')]
    except (TypeError, KeyError):
        said = []
    roles = [role for role, _ in said]
    if len(said) < 2 or roles[roles[0] == 'system' :] != ['user', 'assistant'] * (len(roles) // 2):
        raise ValueError(
            f'{where}: "messages" needs role and content, of user and assistant in turn, the last one of assistant, '
            f'at most one of system before them; its roles are {roles}'
        )
    *history, prompt, completion = [
        {'role': role, 'content': rows.require_text(content, role, where)} for role, content in said
    ]
    return tuple(history), prompt['content'], completion['content']


def _passages(row: dict, corpus: Mapping[str, Passage], where: str) -> tuple[Passage, ...]:
    if 'doc_ids' in row:
        return _named(row['doc_ids'], corpus, where, 'doc_ids')
    if not isinstance(row['documents'], list) or not row['documents']:
        raise ValueError(f'{where}: "documents" must be a list of at least one text')
    texts = (rows.require_text(text, 'documents', where) for text in row['documents'])
    return tuple(Passage(f'{where}-{i}', '', text) for i, text in enumerate(texts))


def _named(ids, corpus: Mapping[str, Passage], where: str, field: str) -> tuple[Passage, ...]:
    if not isinstance(ids, list) or not ids:
        raise ValueError(f'{where}: "{field}" must be a list of at least one id of a passage')
    ids = [str(i) if type(i) is int else i for i in ids]  # ids of passages are text
    unknown = [i for i in ids if i not in corpus]
    if unknown:
        hint = 'name the corpus in config.demos.corpus' if not corpus else 'is it the right corpus?'
        raise ValueError(f'{where}: passage {unknown[0]!r} of "{field}" is not in the corpus; {hint}')
    return tuple(corpus[i] for i in ids)
