"""A judge of search results: a model says whether documents suffice to answer a query, as for ZeroSearch's v2."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Literal

from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.search import FEWEST, refuse_outage
from zerosearch_jax.simulator.writers import Writer
from zerosearch_jax.text import protocol

JUDGE_PROMPT = (
    'Somebody asked a search engine:\n{query}\n\nIt returned:\n{documents}\n\nDo these documents contain enough '
    'information to answer the query? Reply with one word, Yes or No.'
)


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The model that judges; fields as in config.simulator."""

    kind: Literal['model', 'endpoint'] = 'model'
    model: str = 'smollm2-135m-instruct'
    adapter: str = ''
    template_arguments: str = ''
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    weights: Literal['as_loaded', 'int8'] = 'as_loaded'
    prompt_tokens: int = 1024
    max_tokens: int = 8
    temperature: float = 0.0
    slots: int = 16
    mesh: tuple[int, ...] = ()
    cache_gib: float = 0.0


def verdict(text: str) -> bool | None:
    """The first 'yes' or 'no' of a reply; None if it has neither."""
    word = re.search(r'\b(yes|no)\b', text.lower())
    return None if word is None else word[1] == 'yes'


def judge(
    searches: Sequence[tuple[str, Sequence[str]]],
    writer: Writer,
    log: Journal,
    *,
    name: str,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Labels of searches: 'useful', 'noisy', or why there is none ('unclear' reply, or a failure of the writer).

    Verdicts are logged at once, so that an interrupted run asks only for the missing ones; failures are not logged, and
    are asked for again the next time.

    Args:
      searches: (query, documents).
      writer: the judge.
      log: of verdicts.
      name: the judge's identity, part of the keys, so that another judge's verdicts are not reused.
      progress: called with the number of searches that were judged.

    Raises:
      OutsideFailed: (nearly) all requests for verdicts failed.
    """
    messages = [
        protocol.fill(JUDGE_PROMPT, query=query, documents=protocol.render_documents(documents))
        for query, documents in searches
    ]
    keys = [hashlib.sha256(json.dumps([name, message]).encode()).hexdigest() for message in messages]
    labels = {key: log.get(key) for key in keys}
    for key, message in dict(zip(keys, messages, strict=True)).items():
        if labels[key] is None:
            writer.ask(key, message, ('judge', key))
    known, failures = sum(label is not None for label in labels.values()), []
    progress(known)
    while writer.active:
        for written in writer.step():
            good = verdict(written.text)
            label = written.failure or {True: 'useful', False: 'noisy', None: 'unclear'}[good]
            labels[written.handle] = label
            if not written.failure:
                log.put(written.handle, label)
            elif written.failure != 'too_long':
                failures.append(written)
            progress(1)
    refuse_outage('verdicts of the judge', failures, len(labels) - known, min(FEWEST, len(labels) / 2))
    return [labels[key] for key in keys]
