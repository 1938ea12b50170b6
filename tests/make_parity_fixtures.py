"""Writes tests/fixtures/parity_*: a tiny random checkpoint of each family, and the logits that transformers gives it.

    python tests/make_parity_fixtures.py

Needs torch, which the library and its other tests do not. Weights are far from their initial values (norms near 1,
biases 0), so that leaving any of them out, or in the wrong place, changes the logits.
"""

import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
BATCH, LENGTH, VOCAB = 2, 48, 128
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
# with 16 rotary dimensions the wave lengths are 6 to 350 tokens: untouched below 8, blended up to 32, slowed above
LLAMA3_ROPE = dict(
    rope_type='llama3',
    rope_theta=100.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
CONFIGS = {
    'llama': LlamaConfig(**SIZES, tie_word_embeddings=False),
    'llama3scaled': LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE),
    'qwen2': Qwen2Config(**SIZES, tie_word_embeddings=True, rms_norm_eps=1e-5),
    'qwen3': Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
}


def randomize(model, generator):
    """Fills every parameter: kernels of variance 2 / fan_in, norms about 1, biases of order one half."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                weight.copy_(noise * (1.0 if 'embed' in name else (2 / weight.shape[1]) ** 0.5))
            else:
                weight.copy_(0.5 * noise + (0.0 if name.endswith('bias') else 1.0))


def main():
    for seed, (family, config) in enumerate(CONFIGS.items()):
        generator = torch.Generator().manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation='eager').eval()
        randomize(model, generator)
        ids = torch.randint(VOCAB, (BATCH, LENGTH), generator=generator)
        with torch.no_grad():
            logits = model(ids).logits
        directory = FIXTURES / f'parity_{family}'
        model.save_pretrained(directory)
        (directory / 'generation_config.json').unlink(missing_ok=True)
        np.savez_compressed(directory / 'logits.npz', ids=ids.numpy().astype(np.int32), logits=logits.numpy())
        print(family, 'logits of standard deviation', float(logits.std()))


if __name__ == '__main__':
    main()
