"""Opens the source of search results for evaluations and launch.ask: a real engine, or a simulator without noise."""

import functools
import pathlib
from collections.abc import Callable

import jax

from zerosearch_jax.data import sources
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.remote import open_search_engine
from zerosearch_jax.search.search import engine_search
from zerosearch_jax.simulator.load import open_simulator


def open_source(cfg, mesh: jax.sharding.Mesh, log: pathlib.Path | None) -> tuple[Callable, Engine | None]:
    """Opens config.engine or, with config.evaluation.simulated, config.simulator.

    Args:
      cfg: an evaluation.Config.
      mesh: of a simulator of ours.
      log: file of a remote engine's results; None: not written.

    Returns:
      a function that makes the source of one rollout, given the documents of a search (a simulator's are those of its
        section); and the simulator's engine, if the simulator is a model of ours.
    """
    passages = functools.partial(sources.load_passages, cfg.evaluation.corpus)
    open_real = functools.partial(open_search_engine, cfg.engine, passages, Journal(log))
    if not cfg.evaluation.simulated:
        engine = open_real()
        return lambda documents=cfg.evaluation.documents: engine_search(engine.search, documents), None
    simulator = open_simulator(
        cfg.simulator,
        cfg.endpoint,
        mesh=mesh,
        decode_steps=cfg.rollout.decode_steps,
        slots=cfg.rollout.slots or cfg.rollout.episodes,
        corpus=lambda: (BM25(passages()).search, passages()),
        search_engine=open_real,
    )
    return lambda documents=0: simulator.source(seed=cfg.seed, step=0, noise=0.0), simulator.engine
