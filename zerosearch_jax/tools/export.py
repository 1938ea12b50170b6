"""Trained weights for other programs: a model or an adapter of `peft`, with tokenizer, stop strings and model card.

config.json, model*.safetensors                      merged, or trained as a whole
adapter_config.json, adapter_model.safetensors       an adapter
tokenizer*.json, chat_template.jinja, generation_config.json, README.md
"""

import pathlib

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.models import lora
from zerosearch_jax.run import trained
from zerosearch_jax.text import protocol
from zerosearch_jax.tools import card
from zerosearch_jax.weights import huggingface, peft


def export(
    reference: str,
    directory: pathlib.Path,
    *,
    base: str = '',
    merge: bool = False,
    dtype: str = 'bfloat16',
    step: int | None = None,
):
    """Writes weights to a directory.

    Args:
      reference: what trained.find takes.
      directory: made where missing.
      base: the model that an adapter belongs to; '': what it says.
      merge: an adapter becomes part of its model.
      dtype: of a whole model.
      step: of a run, the checkpoint; None: as trained.find.

    Raises:
      FileNotFoundError, ValueError: no such weights, an adapter without a model, or a directory that holds the other
        form, the weights that are read, or the run that they are of.
    """
    found, mesh = trained.find(reference, step), sharding.make_mesh()
    base = base or found.base
    _check_apart(directory, pathlib.Path(found.reference), found.directory, pathlib.Path(base))
    whole = found.is_model or merge
    _check_free(directory, 'adapter_config.json' if whole else 'config.json')
    if not found.is_model and not base:
        raise ValueError(f'{reference} does not say which model it was trained on; give --base')
    model = pretrained.load_model(found.reference if found.is_model else base, mesh)
    params = model.params
    if not found.is_model:
        adapter = pretrained.load_adapter(found.reference, model.cfg, mesh)
        if not merge:
            peft.save(directory, adapter, base)
        params = lora.combine(params, adapter)
    if whole:
        huggingface.save(lora.merge(params), model.cfg, directory, dtype)
    model.tokenizer.save(directory, () if card.is_simulator(found.run) else protocol.STOP_STRINGS)
    (directory / 'README.md').write_text(card.card(found, directory.resolve().name, base, whole), 'utf-8')


def _check_apart(directory: pathlib.Path, *read: pathlib.Path | None):
    """Raises ValueError where it is, or lies in, one of the places that are read, whose files it might overwrite."""
    where = directory.resolve()
    for path in filter(None, read):
        if (path.is_dir() and where.is_relative_to(path.resolve())) or (
            path.is_file() and where == path.parent.resolve()
        ):
            raise ValueError(f'{directory} holds what is to be exported; choose another directory')


def _check_free(directory: pathlib.Path, other: str):
    if (directory / other).exists():
        raise ValueError(f'{directory} holds {other}, which is not overwritten; choose another directory')
