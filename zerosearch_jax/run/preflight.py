"""Checks a configuration before anything is loaded, cheap checks first: no file, small files, the network."""

import pathlib
from collections.abc import Mapping

import jax

from zerosearch_jax import pretrained, progress, sharding
from zerosearch_jax.data.rows import require_source
from zerosearch_jax.models import transformer
from zerosearch_jax.run import trained
from zerosearch_jax.search import remote
from zerosearch_jax.search.remote import EngineConfig
from zerosearch_jax.simulator import load
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.prompts import simulator_template
from zerosearch_jax.simulator.writers import EndpointConfig, require_address

FINE_TUNED = ('tuned', 'told')  # wordings that do not describe the format of the documents
TAUGHT = ('template', 'words', 'style', 'blind_noise')  # fields of a request that fine-tuning fixes


def check(
    mesh: tuple[int, int, int],
    models: Mapping[str, object],
    *,
    rollout_mesh: tuple[int, ...] = (),
    engine: EngineConfig | None = None,
    simulator: SimulatorConfig | None = None,
    endpoint: EndpointConfig | None = None,
    corpus: str = '',
    rows: Mapping[str, int] | None = None,
):
    """Checks the parts of a configuration that will be used.

    Args:
      mesh: config.mesh.
      models: {name of the section: section with `model` and `adapter`}; a simulator of ours is added.
      rollout_mesh: config.rollout.mesh, for the models whose section has no mesh.
      engine: the real search engine, if it will be used.
      simulator: the simulator, if it will be used.
      endpoint: the server of a served simulator.
      corpus: passages that BM25, or an oracle, will search; '': not known.
      rows: {name of the field: rows of a micro-batch}, if there will be updates.

    Raises:
      ValueError, OSError: one line says what is wrong and what to set.
    """
    whole, places = sharding.make_mesh(mesh), {}
    if (used := whole.size) < jax.device_count():
        shape = 'x'.join(map(str, mesh))
        progress.log(f'mesh {shape} uses {used} of {jax.device_count()} devices; -1 in config.mesh takes the rest')
    parts = sharding.shard_count('batch', whole)
    for field, count in (rows or {}).items():
        if count % parts:
            progress.log(f'config.{field} = {count} is no multiple of data x fsdp = {parts}: devices idle in updates')
    if simulator and simulator.kind == 'endpoint':
        require_address(endpoint)
    if engine:
        remote.require_key(engine)
    if corpus and ((engine and engine.kind == 'bm25') or (simulator and simulator.kind == 'oracle')):
        require_source(corpus)
    if simulator and simulator.kind in ('model', 'self', 'endpoint'):
        simulator_template(simulator.template)
    if simulator and simulator.kind == 'model':
        models = {**models, 'simulator': simulator}
    for name, section in models.items():
        shape, of = (section.mesh, name) if hasattr(section, 'mesh') else (rollout_mesh, 'rollout')
        places[name] = sharding.regrouped(whole, shape, f'config.{of}.mesh')
    for look, field in ((pretrained.find_adapter, 'adapter'), (pretrained.open_model, 'model')):
        for name, section in models.items():
            if reference := getattr(section, field):
                try:
                    found = look(reference)
                    if field == 'model':
                        _check_split(found, places[name])
                except (ValueError, OSError) as error:
                    kind = ValueError if isinstance(error, ValueError) else OSError
                    raise kind(f'config.{name}.{field}: {error}') from error
    for name, section in models.items():
        check_adapter(name, section)
    if simulator and simulator.kind in ('model', 'self', 'endpoint'):
        _check_wording(simulator)
    if engine:
        remote.probe(engine)
    if simulator:
        load.probe(simulator, endpoint)


def _check_split(model: pretrained.Model, mesh: jax.sharding.Mesh):
    """Refuses a mesh that does not divide a model's weights."""
    try:
        sharding.shardings(transformer.layout(model.cfg), mesh)
    except ValueError as error:
        raise ValueError(f'on mesh {mesh.devices.shape} {error}') from error


def check_adapter(name: str, section):
    """Prints one line if the adapter of config.NAME was trained over another model than it is put on."""
    base = trained.find(section.adapter).base if section.adapter else ''
    if base not in ('', section.model):
        progress.log(f'config.{name}: {section.adapter} was trained over {base}; here it is put on {section.model}')


def _check_wording(cfg: SimulatorConfig):
    """Prints one line if a simulator will be asked in another wording than it was fine-tuned with."""
    named = (cfg.adapter or cfg.model) if cfg.kind == 'model' else ''
    known = named and (cfg.adapter or pathlib.Path(named, 'config.json').is_file())
    run = trained.find(named).run if known else {}
    taught = run.get('simulator', {}) if 'sft' in run else {}
    others = {field: taught[field] for field in TAUGHT if field in taught and taught[field] != getattr(cfg, field)}
    if others:
        values = ', '.join(f'{field}={value!r}' for field, value in others.items())
        progress.log(f'config.simulator: {named} was fine-tuned with {values}; this run asks otherwise')
    elif cfg.kind != 'model' and cfg.template in FINE_TUNED:
        progress.log(
            f"config.simulator.template={cfg.template!r} is the wording of shipped adapters; 'prompted' is that for "
            'models without fine-tuning'
        )
