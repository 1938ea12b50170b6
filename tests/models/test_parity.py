"""Logits equal those of transformers: stored fixtures (no torch), saved models (torch), and the real SmolLM2."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FIXTURES, TOLERANCE, full_logits, worst

from zerosearch_jax.sharding import make_mesh
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.weights import download, huggingface, loading

FAMILIES = ['llama', 'llama3scaled', 'qwen2', 'qwen3', 'qwen3_moe', 'gemma3_text']


def load(path, mesh, **kwargs):
    cfg = loading.read_config(path)
    return cfg, loading.load(path, cfg, mesh, progress=False, **kwargs)


@pytest.mark.parametrize('family', FAMILIES)
def test_fixture_logits(family, strict_ranks):
    mesh = make_mesh()
    cfg, params = load(FIXTURES / f'parity_{family}', mesh)
    stored = np.load(FIXTURES / f'parity_{family}' / 'logits.npz')
    with jax.set_mesh(mesh):
        ours = full_logits(params, stored['ids'], cfg)
    error = worst(ours, stored['logits'])
    print(f'{family}: max abs error {error:.2e}')
    assert error <= TOLERANCE


def test_fixtures_exercise_every_part():
    """Dropping any weight, or the rope scaling, changes the logits by far more than the tolerance."""
    mesh = make_mesh()
    for family in FAMILIES:
        cfg, params = load(FIXTURES / f'parity_{family}', mesh)
        stored = np.load(FIXTURES / f'parity_{family}' / 'logits.npz')
        with jax.set_mesh(mesh):
            for path, leaf in jax.tree_util.tree_leaves_with_path(params):
                changed = jax.tree_util.tree_map_with_path(
                    lambda p, x, path=path: jnp.flip(x, -1) if p == path else x, params
                )
                assert worst(full_logits(changed, stored['ids'], cfg), stored['logits']) > 1e-2, (
                    family,
                    path,
                    leaf.shape,
                )
            if cfg.rope_scaling:
                plain = dataclasses.replace(cfg, rope_scaling=None)
                assert worst(full_logits(params, stored['ids'], plain), stored['logits']) > 1e-2


@pytest.mark.parametrize('family', FAMILIES)
def test_saved_model_loads_in_transformers(family, tmp_path):
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForCausalLM

    cfg, params = load(FIXTURES / f'parity_{family}', make_mesh())
    stored = np.load(FIXTURES / f'parity_{family}' / 'logits.npz')
    huggingface.save(params, cfg, tmp_path, shard_bytes=40_000 if family == 'qwen3' else 10**9)
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation='eager', output_loading_info=True
    )
    assert not any(report[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    with torch.no_grad():
        theirs = model(torch.tensor(stored['ids'], dtype=torch.long)).logits.numpy()
    assert worst(theirs, stored['logits']) <= 1e-4  # float32 on another machine


@pytest.fixture(scope='module')
def smollm():
    """(reference values, path of the GGUF); skipped where either is not to be had."""
    data = os.environ.get('ZEROSEARCH_DATA')
    if not data:
        pytest.skip('ZEROSEARCH_DATA is not set: no reference values of the real model')
    reference = pathlib.Path(data, '..', 'reference', 'smollm2_135m_instruct.npz')
    if not reference.is_file():
        pytest.skip(f'{reference} is missing')
    try:
        return dict(np.load(reference)), download.resolve('smollm2-135m-instruct')
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_smollm2_prompts(smollm):
    reference, path = smollm
    tokenizer = Tokenizer.load(path)
    meta = json.loads(str(reference['meta']))
    for i, prompt in enumerate(meta['prompts']):
        messages = [{'role': 'user', 'content': prompt}]
        assert tokenizer.chat(messages) == reference[f'prompt_ids_{i}'].tolist()
        official = tokenizer.hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert tokenizer.chat(messages) == official
    ids = tokenizer.encode(meta['text'])
    assert ids[:64] == reference['logits_ids'].tolist()
    assert tokenizer.decode(ids) == meta['text']


def test_smollm2_logits_and_greedy(smollm):
    reference, path = smollm
    mesh = make_mesh()
    cfg, params = load(path, mesh)
    length = len(reference['logits_ids'])
    with jax.set_mesh(mesh):
        error = worst(full_logits(params, reference['logits_ids'][None], cfg)[0], reference['logits'])
        print(f'smollm2-135m: max abs error {error:.2e}')
        assert error <= TOLERANCE
        # greedy, by whole forward passes of the one compiled length: what lies to the right is never seen
        prompt, expected = reference['prompt_ids_0'].tolist(), reference['greedy_ids_0'].tolist()[:8]
        ids = np.zeros(length, np.int32)
        ids[: len(prompt)] = prompt
        for end in range(len(prompt), len(prompt) + len(expected)):
            ids[end] = int(np.argmax(full_logits(params, ids[None], cfg)[0, end - 1]))
        assert ids[len(prompt) : len(prompt) + len(expected)].tolist() == expected


def test_a_real_model_of_another_family_agrees_with_transformers():
    """Any model directory, such as that of gemma-3-270m-it: text, ids of a chat and logits."""
    directory, torch = os.environ.get('ZEROSEARCH_PARITY_MODEL'), pytest.importorskip('torch')
    if not directory:
        pytest.skip('ZEROSEARCH_PARITY_MODEL names no directory of a real model (Gemma 3, Qwen3-MoE, ...)')
    from transformers import AutoModelForCausalLM

    tokenizer, mesh = Tokenizer.load(directory), make_mesh()
    messages = [{'role': 'user', 'content': 'Où est  Paris?\n\tÇa va 🙂'}]
    ids = tokenizer.chat(messages)
    assert ids == tokenizer.hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(tokenizer.encode(messages[0]['content'])) == messages[0]['content']
    cfg, params = load(directory, mesh)
    with jax.set_mesh(mesh):
        ours = full_logits(params, np.array([ids], np.int32), cfg)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation='eager')
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    assert worst(ours, theirs) <= 1e-3  # logits of real models are larger
