"""Exports trained weights for other programs: a model or an adapter of `peft`, with tokenizer and model card.

config.json, model*.safetensors                      a whole model, merged or fully trained
adapter_config.json, adapter_model.safetensors       an adapter
tokenizer*.json, chat_template.jinja, generation_config.json, README.md, curves.png
"""

import pathlib

from zerosearch_jax import pretrained, settings, sharding
from zerosearch_jax.models import lora
from zerosearch_jax.run import curves, trained
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
      reference: as in trained.find.
      directory: created if missing.
      base: the model that an adapter belongs to; '': the one that it names.
      merge: whether to merge an adapter into its model.
      dtype: type of the weights of a whole model.
      step: the checkpoint of a run; None: as in trained.find.

    Raises:
      FileNotFoundError, ValueError: there are no such weights, an adapter names no model, or the directory holds the
        other form, the weights that are read, or a run.
    """
    found, mesh = trained.find(reference, step), sharding.make_mesh()
    base = base or found.base
    _check_apart(directory, pathlib.Path(found.reference), found.directory, base and pathlib.Path(base))
    whole = found.is_model or merge
    _check_free(directory, whole)
    if not found.is_model and not base:
        raise ValueError(f'{reference} does not say which model it was trained on; give --base')
    place = found.reference if found.is_model else base
    model = pretrained.load_model(place, mesh) if whole else pretrained.open_model(place)
    if not whole:
        peft.save(directory, pretrained.load_adapter(found.reference, model.cfg, mesh), base)
    elif found.is_model:
        huggingface.save(lora.merge(model.params), model.cfg, directory, dtype)
    else:
        adapter = pretrained.load_adapter(found.reference, model.cfg, mesh)
        huggingface.save(lora.merge(lora.combine(model.params, adapter)), model.cfg, directory, dtype)
    model.tokenizer.save(directory, () if card.is_simulator(found.run) else card.grammar(found.run).stops)
    drawn = found.directory and curves.plot_curves(found.directory, path=directory / 'curves.png', last=found.step)
    (directory / 'README.md').write_text(card.card(found, directory.resolve().name, base, whole, bool(drawn)), 'utf-8')


def _check_apart(directory: pathlib.Path, *read: pathlib.Path | None):
    """Raises ValueError if the directory is, or is inside, a place that is read, whose files it might overwrite."""
    where = directory.resolve()
    for path in filter(None, read):
        if (path.is_dir() and where.is_relative_to(path.resolve())) or (
            path.is_file() and where == path.parent.resolve()
        ):
            raise ValueError(f'{directory} holds the weights to export; choose another directory')


def _check_free(directory: pathlib.Path, whole: bool):
    """Raises ValueError if the directory holds the other form, or a config.json that is no model's but a run's."""
    other, config = directory / ('adapter_config.json' if whole else 'config.json'), directory / 'config.json'
    if config.is_file() and 'model_type' not in settings.read_json(config):
        other = config
    if other.exists():
        raise ValueError(f'{directory} holds {other.name}, which is not overwritten; choose another directory')
