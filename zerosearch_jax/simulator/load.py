"""Opening the configured simulator: a model of ours, a served one, or an oracle; loaded once, frozen for the run."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from zerosearch_jax import pretrained
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

    source: Callable  # of (seed, step, noise), all named: the source of one step's results; noise is the curriculum's
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
      cfg: which one.
      endpoint: where a served model is.
      mesh: of our models.
      decode_steps: tokens decoded between two looks of the host.
      slots: of a model of ours, where `cfg` leaves it to the episodes.
      corpus: opens what an oracle knows: (a search in it, its passages).
      search_engine: opens the real engine, where that is what searches.
      loaded: a model that is there already, used if it is the one that `cfg` names: it is not loaded again.
      engine: of the loaded model, where its base is shared with the policy; None: it gets one of its own.
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
    options = {'mesh': mesh, 'decode_steps': decode_steps, 'loaded': loaded, 'engine': engine}
    options['keep_failures'] = not cfg.remember
    calls, memory = Journal(log), Journal(cfg.remember) if cfg.remember else None
    sized = cfg
    if not cfg.slots and cfg.kind == 'model':
        sized = dataclasses.replace(cfg, slots=slots, cache_gib=cfg.cache_gib or capacity.cache_gib(mesh))
    writer = open_writer(sized, endpoint, log=calls, **options)
    weights = _weights_digest(cfg) if memory else ''
    source = functools.partial(SimulatedSearch, writer, cfg, memory=memory, weights=weights)
    return Simulator(source, getattr(writer, 'engine', None), (calls, memory) if memory else (calls,))


def _weights_digest(cfg: SimulatorConfig) -> str:
    """A hash of a simulator's weights, as far as they are files here: a path may hold others tomorrow."""
    paths = [pathlib.Path(cfg.model)]
    if cfg.adapter and cfg.kind == 'model':
        paths.append(pretrained.find_adapter(cfg.adapter))
    digest = hashlib.sha256()
    for path in paths:
        for file in [path] if path.is_file() else sorted([*path.glob('*.safetensors'), *path.glob('adapter_*.json')]):
            with open(file, 'rb') as opened:
                digest.update(hashlib.file_digest(opened, 'sha256').digest())
    return digest.hexdigest()


def probe(cfg: SimulatorConfig | JudgeConfig, endpoint: EndpointConfig):
    """Asks a served model for a few tokens: reports one that cannot be used before the long work starts.

    Of another kind nothing is asked: of kind 'engine' that is search.remote.probe's.

    Raises:
      OutsideFailed: in one line which server, where, what it said and what to look at.
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
    """Names of the models that a server has; [] where it does not say."""
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
    """A model that writes: a served one (EndpointWriter has the arguments), or one of ours, loaded.

    `engine`: of the model that is `loaded`, where its base is shared.
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
    owned = name != cfg.model
    if owned:
        model = pretrained.load_model(cfg.model, mesh, cfg.dtype)
    params, model = model.params, dataclasses.replace(model, params={})
    budgets = {'prompt_tokens': cfg.prompt_tokens, 'max_tokens': cfg.max_tokens}
    adapter = pretrained.load_adapter(cfg.adapter, model.cfg, mesh) if cfg.adapter else {}
    if engine is not None:
        engine.load(lora.combine(params, adapter), temperature=cfg.temperature)
        return EngineWriter(engine, model.tokenizer, **budgets, arguments=arguments)
    params = lora.combine(params, adapter)
    if cfg.weights == 'int8':
        with jax.set_mesh(mesh):
            params = quant.quantize(params)
    (engine,) = pretrained.open_engines(
        model,
        mesh,
        (Role(cfg.slots),),
        cache_gib=cfg.cache_gib,
        capacity=cfg.prompt_tokens + cfg.max_tokens,
        decode_steps=decode_steps,
        dtype=cfg.dtype,
    )
    engine.load(params, temperature=cfg.temperature, owned=owned)
    return EngineWriter(engine, model.tokenizer, **budgets, arguments=arguments)
