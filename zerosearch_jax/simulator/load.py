"""Opens the configured simulator: a model of ours, a served model, or an oracle; loaded once, frozen for the run."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.generate import capacity
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.models import lora, quant
from zerosearch_jax.search import outside
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal, on_first_process
from zerosearch_jax.search.outside import RequestFailed
from zerosearch_jax.search.remote import RemoteSearch, search_in_step
from zerosearch_jax.search.search import DocumentSearch, engine_search
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.judge import JudgeConfig
from zerosearch_jax.simulator.oracle import Oracle, oracle_search
from zerosearch_jax.simulator.simulator import SimulatedSearch, draw_labels
from zerosearch_jax.simulator.writers import (
    ENDPOINT_KEY,
    EndpointConfig,
    EndpointWriter,
    EngineWriter,
    Writer,
    require_address,
)
from zerosearch_jax.text.tokenizer import template_arguments


class Simulator(NamedTuple):
    """A source of simulated search results, frozen for a run."""

    source: Callable  # takes seed, step and noise (of the curriculum) by name; returns the source of a step's results
    engine: Engine | None = None  # of a model of ours
    journals: tuple[Journal, ...] = ()  # committed when a step is done


def open_simulator(
    cfg: SimulatorConfig,
    endpoint: EndpointConfig,
    *,
    mesh: jax.sharding.Mesh,
    decode_steps: int,
    slots: int,
    corpus: Callable[[], tuple[Callable, Sequence[Passage]]],
    search_engine: Callable[[], BM25 | RemoteSearch],
    loaded: tuple[str, pretrained.Model] | None = None,
    engine: Engine | None = None,
    log: pathlib.Path | None = None,
) -> Simulator:
    """Opens the configured simulator.

    Args:
      cfg: the simulator.
      endpoint: the server of a served model.
      mesh: whose devices our models use.
      decode_steps: tokens that one call of the engine decodes.
      slots: of a model of ours, if `cfg` has 0.
      corpus: opens the corpus of an oracle: (a search in it, its passages).
      search_engine: opens the real engine, if that answers the searches.
      loaded: a model that is loaded already; it is used if `cfg` names it.
      engine: of the loaded model, if its base is shared with the policy; None: it gets its own engine.
      log: file of the calls to a served model, from which a resumed run replays them; None: not written.
    """
    if cfg.kind == 'none':
        return Simulator(lambda **_: DocumentSearch(lambda queries, labels: []))
    if cfg.kind == 'engine':
        real = search_engine()  # it ignores the noise
        return Simulator(
            lambda *, seed, step, noise: engine_search(search_in_step(real, f'seed {seed}, step {step}'), cfg.documents)
        )
    if cfg.kind == 'oracle':
        oracle = Oracle(*corpus())
        return Simulator(
            lambda *, seed, step, noise: oracle_search(oracle, lambda q: draw_labels(q, cfg, (seed, step), noise))
        )
    # keys of remembered documents have no step, so a remembered failure would never be asked again
    options = {'mesh': mesh, 'decode_steps': decode_steps, 'loaded': loaded, 'engine': engine}
    options['keep_failures'] = not cfg.remember
    calls, memory = Journal(log), Journal(cfg.remember) if cfg.remember else None
    sized = cfg
    if not cfg.slots and cfg.kind == 'model':
        sized = dataclasses.replace(cfg, slots=slots, cache_gib=cfg.cache_gib or capacity.cache_gib(mesh))
    writer = open_writer(sized, endpoint, log=calls, **options)
    adapter = [pretrained.find_adapter(cfg.adapter)] if cfg.adapter and cfg.kind == 'model' else []
    weights = pretrained.digest(pathlib.Path(cfg.model), *adapter) if memory else ''
    source = functools.partial(SimulatedSearch, writer, cfg, memory=memory, failures=calls, weights=weights)
    return Simulator(source, getattr(writer, 'engine', None), (calls, memory) if memory else (calls,))


def probe(cfg: SimulatorConfig | JudgeConfig, endpoint: EndpointConfig):
    """Asks a served model for a few tokens, so that one that cannot be used is reported before the long work.

    Other kinds are not tested here; for 'engine' search.remote.probe does that.

    Raises:
      OutsideFailed: one line says which server, where, its message and what to check.
      ValueError: no address is configured.
    """
    if cfg.kind == 'endpoint':
        require_address(endpoint)
        on_first_process(lambda: _probe(cfg.model, endpoint))


def _probe(model: str, endpoint: EndpointConfig):
    try:
        endpoint.chat('Say Yes.', {'model': model, 'max_tokens': 16, 'temperature': 0.0})
    except RequestFailed as error:
        hint = ''
        if error.kind in ('status_400', 'status_404', 'invalid'):
            served = _served(endpoint)
            if served and model not in served:
                hint = f'it serves {", ".join(map(repr, served[:5]))}: is the model {model!r} one of them?'
            elif not served and not endpoint.url.rstrip('/').endswith('/v1'):
                hint = 'does the address lack /v1?'
        elif error.kind in ('status_401', 'status_403'):
            hint = f'is the key in {ENDPOINT_KEY} right?'
        raise outside.unusable(f'served model {model!r}', endpoint.url, error, hint) from None


def _served(endpoint: EndpointConfig) -> list[str]:
    """Names of the models of a server; [] if it does not list them."""
    try:
        return [outside.safe_message(model['id']) for model in endpoint.ask('models')['data']]
    except (RequestFailed, LookupError, TypeError, AttributeError):
        return []


def open_writer(
    cfg: SimulatorConfig | JudgeConfig,
    endpoint: EndpointConfig,
    *,
    mesh: jax.sharding.Mesh,
    decode_steps: int,
    log: Journal,
    keep_failures: bool = False,
    loaded: tuple[str, pretrained.Model] | None = None,
    engine: Engine | None = None,
) -> Writer:
    """A writer: a served model (arguments as in EndpointWriter), or one of ours, loaded.

    `engine`: of the `loaded` model, if its base is shared or, for kind 'self', all its weights.
    """
    arguments = template_arguments(cfg.template_arguments)
    if cfg.kind == 'endpoint':
        return EndpointWriter(
            endpoint,
            cfg.model,
            max_tokens=cfg.max_tokens,
            temperature=cfg.temperature,
            log=log,
            keep_failures=keep_failures,
            arguments=arguments,
        )
    name, model = loaded or ('', None)
    mesh = sharding.regrouped(mesh, cfg.mesh, 'mesh of the simulator or judge')
    sampling = {'max_tokens': cfg.max_tokens, 'temperature': cfg.temperature, 'arguments': arguments}
    write = functools.partial(EngineWriter, prompt_tokens=cfg.prompt_tokens, **sampling)
    if cfg.kind == 'self':
        if engine is None:
            raise ValueError("config.simulator.kind = 'self' works only with launch.train; set kind='model'")
        return write(engine, model.tokenizer)  # it has the weights while the policy has
    if owned := name != cfg.model:
        model = pretrained.load_model(cfg.model, mesh, cfg.dtype)
    params, model = model.params, dataclasses.replace(model, params={})
    adapter = pretrained.load_adapter(cfg.adapter, model.cfg, mesh) if cfg.adapter else {}
    if engine is not None:
        engine.load(lora.combine(params, adapter))
        return write(engine, model.tokenizer)
    params = lora.combine(params, adapter)
    params = quant.quantize(params) if cfg.weights == 'int8' else params
    (engine,) = pretrained.open_engines(
        model,
        mesh,
        (Role(cfg.slots),),
        cache_gib=cfg.cache_gib,
        capacity=cfg.prompt_tokens + cfg.max_tokens,
        decode_steps=decode_steps,
        dtype=cfg.dtype,
    )
    engine.load(params, owned=owned)
    return write(engine, model.tokenizer)
