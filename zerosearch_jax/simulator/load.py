"""Opening the configured simulator: a model of ours, a served one, or an oracle; loaded once, frozen for the run."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from zerosearch_jax import pretrained
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.models import lora, quant
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.remote import RemoteSearch, search_in_step
from zerosearch_jax.search.search import DocumentSearch, engine_search
from zerosearch_jax.simulator.oracle import Oracle, oracle_search
from zerosearch_jax.simulator.simulator import SimulatedSearch, SimulatorConfig, draw_labels
from zerosearch_jax.simulator.writers import EndpointConfig, EndpointWriter, EngineWriter, Writer
from zerosearch_jax.text import stop


class Simulator:
    """The source of simulated search results of a run.

    Args:
      cfg: which one.
      endpoint: where a served model is.
      mesh: of our models.
      decode_steps: tokens decoded between two looks of the host.
      loaded: a model that is there already, used if it is the one that `cfg` names: it is not loaded again.
      corpus: opens what an oracle knows: (a search in it, its passages).
      engine: opens the real engine, where that is what searches.
      log: file of the calls to a served model, from which a resumed run replays them; None: not written.
    """

    def __init__(
        self,
        cfg: SimulatorConfig,
        endpoint: EndpointConfig,
        *,
        mesh: jax.sharding.Mesh,
        decode_steps: int,
        corpus: Callable[[], tuple[Callable, Sequence[Passage]]],
        engine: Callable[[], BM25 | RemoteSearch],
        loaded: tuple[str, pretrained.Model] | None = None,
        log: pathlib.Path | None = None,
    ):
        self.cfg = cfg
        self.engine: Engine | None = None
        self._writer: Writer | None = None
        self._oracle: Oracle | None = None
        self._real: BM25 | RemoteSearch | None = None
        self._memory = Journal(cfg.remember) if cfg.remember else None
        if cfg.kind == 'oracle':
            self._oracle = Oracle(*corpus())
        elif cfg.kind == 'engine':
            self._real = engine()
        elif cfg.kind != 'none':
            self._writer = open_writer(
                cfg,
                endpoint,
                mesh=mesh,
                decode_steps=decode_steps,
                loaded=loaded,
                log=Journal(log),
                keep_failures=not cfg.remember,  # what is remembered has no step: its failures would be for ever
            )
            self.engine = getattr(self._writer, 'engine', None)

    def search(self, *, seed: int, step: int, noise: float) -> SimulatedSearch | DocumentSearch:
        """The source of one step's results; `noise` is the curriculum's value, which a real engine does not heed."""
        if self._real:
            return engine_search(search_in_step(self._real, f'seed {seed}, step {step}'), self.cfg.documents)
        if self.cfg.kind == 'none':
            return DocumentSearch(lambda queries, labels: [])
        if self._oracle:
            return oracle_search(self._oracle, lambda query: draw_labels(query, self.cfg, (seed, step), noise))
        return SimulatedSearch(self._writer, self.cfg, seed=seed, step=step, noise=noise, memory=self._memory)


class WriterConfig(Protocol):
    """What SimulatorConfig and JudgeConfig have in common."""

    kind: str
    model: str
    adapter: str
    dtype: str
    weights: str
    prompt_tokens: int
    max_tokens: int
    temperature: float
    slots: int
    cache_gib: float


def open_writer(
    cfg: WriterConfig,
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
    engine = Engine(
        model.cfg,
        mesh,
        slots=cfg.slots,
        cache_bytes=int(cfg.cache_gib * 2**30) or None,
        capacity=cfg.prompt_tokens + cfg.max_tokens,
        stop=stop.compile_table((), model.token_bytes),
        eos_ids=model.tokenizer.eos_ids,
        decode_steps=decode_steps,
        dtype=cfg.dtype,
    )
    engine.load(params, temperature=cfg.temperature, owned=owned)
    return EngineWriter(engine, model.tokenizer, prompt_tokens=cfg.prompt_tokens, max_tokens=cfg.max_tokens)
