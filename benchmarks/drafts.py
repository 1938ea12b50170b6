"""How many tokens a verified look-up draft would yield in one call of `decode`, for the trajectories of a run.

python -m benchmarks.drafts runs/quickstart

A draft is what followed the last two tokens where they occurred last: in the prompt and the generation so far (`own`),
or else in earlier generations of the run (`all`, which flatters: they are taken one after the other, but a rollout
makes many at once). A call verifies all drafted tokens, `--width` - 1 at most, and samples one more. Counted are
tokens of the recorded text, encoded again; the request of a document is taken as its query, question and answer.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator

from benchmarks.startup import rows
from zerosearch_jax import pretrained

LOOKED_UP = 2  # tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=pathlib.Path)
    parser.add_argument('--width', type=int, nargs='+', default=[2, 4, 8], help='tokens that a call computes in a row')
    args = parser.parse_args()
    model = json.loads((args.run / 'config.json').read_text())['policy']['model']
    encode = pretrained.open_model(model).tokenizer.encode
    made = {'policy': [], 'simulator': []}
    for row in rows(args.run / 'trajectories.jsonl'):
        for role, context, text in generations(row):
            made[role].append((encode(context), encode(text)))
    for role, pairs in made.items():
        for width in args.width:
            found = {name: tokens_a_call(pairs, width, shared) for name, shared in (('own', False), ('all', True))}
            tokens = sum(len(generated) for _, generated in pairs)
            print(json.dumps({'role': role, 'tokens': tokens, 'width': width, **found}), flush=True)


def generations(row: dict) -> Iterator[tuple[str, str, str]]:
    """Role, context and text of everything that was generated for a trajectory."""
    context = ''
    for segment in row['segments']:
        if segment['kind'] == 'action':
            yield 'policy', context, segment['text']
        context += segment['text']
    for search in row['searches']:
        request = f'Query: {search["query"]}\nQuestion: {row["question"]}\nAnswer: {row["golden_answers"][0]}\n'
        yield 'simulator', request, '\n'.join(f'Doc {i}: {text}' for i, text in enumerate(search['documents'], 1))


def tokens_a_call(pairs: list[tuple[list[int], list[int]]], width: int, shared: bool) -> float:
    """Tokens generated, over the calls that it takes to generate them with drafts.

    Args:
      pairs: context and generated tokens.
      width: tokens that a call computes in a row: its newest and the drafted ones.
      shared: whether earlier generations are looked up too.
    """
    earlier, calls = {}, 0
    for context, generated in pairs:
        own, text, done = {}, [*context], 0
        _remember(own, text, LOOKED_UP)
        while done < len(generated):
            key = tuple(text[-LOOKED_UP:])
            source, at = own.get(key) or earlier.get(key) or (text, len(text))
            draft = source[at : at + width - 1]
            taken = _agreed(draft, generated[done:]) + 1
            text += generated[done : done + taken]
            _remember(own, text, len(text) - taken)
            done, calls = done + taken, calls + 1
        if shared:
            earlier.update(own)
    return round(sum(len(generated) for _, generated in pairs) / max(calls, 1), 2)


def _remember(places: dict, text: list[int], start: int):
    """Notes what follows each key that ends before the last token, from position `start` on."""
    for at in range(max(start, LOOKED_UP), len(text)):
        places[tuple(text[at - LOOKED_UP : at])] = text, at


def _agreed(draft: list[int], tokens: list[int]) -> int:
    """How many drafted tokens are those that were sampled."""
    count = 0
    while count < min(len(draft), len(tokens)) and draft[count] == tokens[count]:
        count += 1
    return count


if __name__ == '__main__':
    main()
