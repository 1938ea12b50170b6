"""Opening the configured simulator: a model of ours, a served one, or an oracle; loaded once, frozen for the run."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from zerosearch_jax import pretrained
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.models import lora, quant
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.remote import RemoteSearch, search_in_step
from zerosearch_jax.search.search import DocumentSearch, engine_search
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.judge import JudgeConfig
from zerosearch_jax.simulator.oracle import Oracle, oracle_search
from zerosearch_jax.simulator.simulator import SimulatedSearch, draw_labels
from zerosearch_jax.simulator.writers import EndpointConfig, EndpointWriter, EngineWriter, Writer


class Simulator(NamedTuple):
    """A source of simulated search results, frozen for a run."""

    source: Callable  # of (seed, step, noise), all named: the source of one step's results; noise is the curriculum's
    engine: Engine | None = None  # of a model of ours


def open_simulator(
    cfg: SimulatorConfig,
    endpoint: EndpointConfig,
    *,
    mesh: jax.sharding.Mesh,
    decode_steps: int,
    corpus: Callable[[], tuple[Callable, Sequence[Passage]]],
    search_engine: Callable[[], BM25 | RemoteSearch],
    loaded: tuple[str, pretrained.Model] | None = None,
    log: pathlib.Path | None = None,
) -> Simulator:
    """Opens the configured simulator.

    Args:
      cfg: which one.
      endpoint: where a served model is.
      mesh: of our models.
      decode_steps: tokens decoded between two looks of the host.
      corpus: opens what an oracle knows: (a search in it, its passages).
      search_engine: opens the real engine, where that is what searches.
      loaded: a model that is there already, used if it is the one that `cfg` names: it is not loaded again.
      log: file of the calls to a served model, from which a resumed run replays them; None: not written.
    """
    if cfg.kind == 'none':
        return Simulator(lambda **_: DocumentSearch(lambda queries, labels: []))
    if cfg.kind == 'engine':
        real = search_engine()  # it does not heed the noise
        return Simulator(
            lambda *, seed, step, noise: engine_search(search_in_step(real, f'seed {seed}, step {step}'), cfg.documents)
        )
    if cfg.kind == 'oracle':
        oracle = Oracle(*corpus())
        return Simulator(
            lambda *, seed, step, noise: oracle_search(oracle, lambda q: draw_labels(q, cfg, (seed, step), noise))
        )
    # what is remembered has no step: its failures would be for ever
    options = {'mesh': mesh, 'decode_steps': decode_steps, 'loaded': loaded, 'keep_failures': not cfg.remember}
    writer = open_writer(cfg, endpoint, log=Journal(log), **options)
    memory = Journal(cfg.remember) if cfg.remember else None
    source = functools.partial(SimulatedSearch, writer, cfg, memory=memory)
    return Simulator(source, getattr(writer, 'engine', None))


def open_writer(
    cfg: SimulatorConfig | JudgeConfig,
    endpoint: EndpointConfig,
    *,
    mesh: jax.sharding.Mesh,
    decode_steps: int,
    log: Journal,
    keep_failures: bool = False,
    loaded: tuple[str, pretrained.Model] | None = None,
) -> Writer:
    """A model that writes: a served one (EndpointWriter has the arguments), or one of ours, loaded."""
    if cfg.kind == 'endpoint':
        return EndpointWriter(
            endpoint,
            cfg.model,
            max_tokens=cfg.max_tokens,
            temperature=cfg.temperature,
            log=log,
            keep_failures=keep_failures,
        )
    name, model = loaded or ('', None)
    owned = name != cfg.model
    if owned:
        model = pretrained.load_model(cfg.model, mesh, cfg.dtype)
    params, model = model.params, dataclasses.replace(model, params={})
    if cfg.adapter:
        params = lora.combine(params, pretrained.load_adapter(cfg.adapter, model.cfg, mesh))
    if cfg.weights == 'int8':
        with jax.set_mesh(mesh):
            params = quant.quantize(params)
    engine = pretrained.open_engine(
        model,
        mesh,
        slots=cfg.slots,
        cache_gib=cfg.cache_gib,
        capacity=cfg.prompt_tokens + cfg.max_tokens,
        decode_steps=decode_steps,
        dtype=cfg.dtype,
    )
    engine.load(params, temperature=cfg.temperature, owned=owned)
    return EngineWriter(engine, model.tokenizer, prompt_tokens=cfg.prompt_tokens, max_tokens=cfg.max_tokens)
