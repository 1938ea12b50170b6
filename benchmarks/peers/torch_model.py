"""The model in transformers, and generation without an end from rows of any length.

In bfloat16 where there is a GPU, else in float32 on all cores. Without a file of weights they are random.
"""

from __future__ import annotations

import os
import pathlib

import torch
from transformers import AutoConfig, AutoModelForCausalLM

DEVICE, DTYPE = ('cuda', torch.bfloat16) if torch.cuda.is_available() else ('cpu', torch.float32)


def load(path: pathlib.Path):
    torch.set_num_threads(os.cpu_count())  # its default leaves out hyperthreads
    torch.manual_seed(0)
    about = {'dtype': DTYPE, 'attn_implementation': 'sdpa'}
    with torch.device(DEVICE):
        if (path / 'model.safetensors').exists():
            model = AutoModelForCausalLM.from_pretrained(path, **about).to(DEVICE)
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), **about)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def random_rows(model, rows: int, length: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, model.config.vocab_size - 1, (rows, length), generator=generator).tolist()


@torch.inference_mode()
def generate(model, rows: list[list[int]], new: int) -> list[list[int]]:
    """Samples exactly `new` tokens after every row from the whole distribution; rows are padded on the left."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    model.eval()
    written = model.generate(
        tokens, attention_mask=mask, max_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    assert written.shape[1] == width + new
    return written[:, width:].tolist()
