"""Checks a configuration before anything is loaded, cheap checks first: no file, small files, the network."""

from collections.abc import Mapping

import jax

from zerosearch_jax import pretrained, progress, sharding
from zerosearch_jax.search import remote
from zerosearch_jax.search.remote import EngineConfig
from zerosearch_jax.simulator import load
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.prompts import simulator_template
from zerosearch_jax.simulator.writers import EndpointConfig, require_address


def check(
    mesh: tuple[int, int, int],
    models: Mapping[str, object],
    *,
    engine: EngineConfig | None = None,
    simulator: SimulatorConfig | None = None,
    endpoint: EndpointConfig | None = None,
):
    """Checks the parts of a configuration that will be used.

    Args:
      mesh: config.mesh.
      models: {name of the section: section with `model` and `adapter`}; a simulator of ours is added.
      engine: the real search engine, if it will be used.
      simulator: the simulator, if it will be used.
      endpoint: the server of a served simulator.

    Raises:
      ValueError, OSError: one line says what is wrong and what to set.
    """
    if (used := sharding.make_mesh(mesh).size) < jax.device_count():
        shape = 'x'.join(map(str, mesh))
        progress.log(f'mesh {shape} uses {used} of {jax.device_count()} devices; -1 in config.mesh takes the rest')
    if simulator and simulator.kind == 'endpoint':
        require_address(endpoint)
    if engine:
        remote.require_key(engine)
    if simulator and simulator.kind in ('model', 'self', 'endpoint'):
        simulator_template(simulator.template)
    if simulator and simulator.kind == 'model':
        models = {**models, 'simulator': simulator}
    for look, field in ((pretrained.find_adapter, 'adapter'), (pretrained.open_model, 'model')):
        for name, section in models.items():
            if reference := getattr(section, field):
                try:
                    look(reference)
                except (ValueError, OSError) as error:
                    kind = ValueError if isinstance(error, ValueError) else OSError
                    raise kind(f'config.{name}.{field}: {error}') from error
    if engine:
        remote.probe(engine)
    if simulator:
        load.probe(simulator, endpoint)
