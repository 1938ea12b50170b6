"""Writes a model as a Hugging Face directory: SmolLM2 for the peers to load, or random weights that search.

python -m benchmarks.peers.export --out .venv-peers/smollm2
python -m benchmarks.peers.export --model smollm2-135m --talking --out DIRECTORY      # nothing is downloaded
"""

import argparse
import json
import pathlib

from benchmarks import common
from zerosearch_jax import sharding
from zerosearch_jax.models.config import to_hf
from zerosearch_jax.text.tokenizer import CHATML, Tokenizer
from zerosearch_jax.weights import huggingface

ROOT = pathlib.Path(__file__).parents[2]
ENDS = ('<|im_start|>', '<|im_end|>', '<|endoftext|>')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default=common.MODEL)
    parser.add_argument('--talking', action='store_true', help='its tokenizer has queries, answers and documents')
    parser.add_argument('--config-only', action='store_true', help='no weights: a peer makes random ones')
    parser.add_argument('--out', type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.config_only:
        cfg, tokenizer = common.PRESETS[args.model], None
        (args.out / 'config.json').write_text(json.dumps(to_hf(cfg)))
    else:
        model = common.load_model(args.model, sharding.make_mesh())
        cfg, tokenizer = model.cfg, model.tokenizer
        huggingface.save(model.params, cfg, args.out)
    (talking(cfg.vocab_size) if args.talking or tokenizer is None else tokenizer).save(args.out)


def talking(size: int) -> Tokenizer:
    """A tokenizer with which a model of random weights, to which all tokens are equally likely, acts like a policy.

    A tenth of the tokens that its prompts do not need are lists of documents, some are queries, a few answers. With the
    others prompts are nearly as short as with a real tokenizer.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Backend(models.BPE())
    words.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=min(size // 2, 8192), initial_alphabet=sorted(split.alphabet()), show_progress=False
    )
    words.train_from_iterator([path.read_text() for path in sorted(ROOT.glob('zerosearch_jax/**/*.py'))], trainer)
    spec = json.loads(words.to_str())['model']
    vocab = {token: i for token, i in sorted(spec['vocab'].items(), key=lambda item: item[1])}
    vocab |= {token: len(vocab) + i for i, token in enumerate(ENDS)}
    for i in range(len(vocab), size):
        docs = ''.join(f'\nDoc {n}: fact {i} of place {n}' for n in range(1, 6))
        kinds = {0: f'<search> place {i} </search>', 80: f'<answer> {i} </answer>', 40: f'<search> time {i} </search>'}
        text = kinds.get(i % 160, f'{docs}\n' if i % 10 == 1 else f' word{i}')
        vocab[text.replace(' ', 'Ġ').replace('\n', 'Ċ')] = i
    backend = Backend(models.BPE(vocab=vocab, merges=[tuple(pair) for pair in spec['merges']]))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ENDS])
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHATML, eos_token=ENDS[1], pad_token=ENDS[2])
    )


if __name__ == '__main__':
    main()
