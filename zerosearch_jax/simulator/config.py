"""The configuration of a simulator."""

import dataclasses
from typing import Literal

from zerosearch_jax import settings
from zerosearch_jax.text.tokenizer import template_arguments


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
    """Who plays the search engine, how it is asked, and how it is read."""

    # a model of ours, the policy itself, config.endpoint's model, gold passages of the corpus, config.engine, no search
    kind: Literal['model', 'self', 'endpoint', 'oracle', 'engine', 'none'] = 'model'
    model: str = 'smollm2-135m-instruct'  # as config.policy.model; for an endpoint the served model's name
    adapter: str = ''  # as config.policy.adapter
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    weights: Literal['as_loaded', 'int8'] = 'as_loaded'  # int8: a quarter of float32's memory
    live: bool = True  # for 'self': the policy's current weights write the documents; False: its initial weights
    template_arguments: str = ''  # as config.rollout.template_arguments, for the simulator's chat template
    # wording: 'prompted'; 'told' and 'tuned', which shipped adapters were taught; or a JSON file of SimulatorTemplate
    template: str = 'prompted'
    style: str = 'documents'  # name of the documents in the request, e.g. 'web snippets', 'encyclopedia passages'
    documents: int = 3  # documents for a search
    words: int = 30  # words that the request asks for in a document
    tell: Literal['final', 'hop', 'none'] = 'final'  # the answer in a request: the question's, the hop's, or none
    blind_noise: bool = False  # whether requests for noisy documents hold neither question nor answer
    questions: Literal['own', 'compacted'] = 'own'  # a query's question: its own, or CompactedQuestions (difference D1)
    noise_per: Literal['search', 'document'] = 'search'  # whether noise is drawn for a search or for each document
    prompt_tokens: int = 320  # tokens of one request: template, question, answer and query
    max_tokens: int = 160  # tokens of one output
    temperature: float = 0.8
    attempts: int = 3  # the most generations before the search counts as failed
    verify: bool = False  # whether documents that contradict their label are written again, within the same attempts
    slots: int = 0  # requests that it answers at once; 0: as many as config.rollout has episodes
    mesh: tuple[int, ...] = ()  # as config.rollout.mesh, which is used instead if one engine serves both
    cache_gib: float = 0.0  # as config.rollout.cache_gib, which is used instead if one engine serves both
    remember: str = ''  # file of written documents, by all that they depend on; '': documents are always written anew

    def __post_init__(self):
        template_arguments(self.template_arguments)
        settings.require_positive(self, 'documents', 'words', 'prompt_tokens', 'max_tokens', 'attempts')
        if self.slots < 0:
            raise ValueError(f'slots must not be negative, got {self.slots}')
        if self.kind == 'self' and self.adapter:
            raise ValueError(f"kind = 'self' writes with the policy's weights: set adapter='', got {self.adapter!r}")
        if self.kind == 'self' and self.live and (self.remember or self.weights != 'as_loaded'):
            raise ValueError(
                "kind = 'self' writes with weights that change: set remember='' and weights='as_loaded', or live=False"
            )


# the fields that documents depend on, besides those that are in the request
WRITER_FIELDS = (
    *('kind', 'model', 'adapter', 'dtype', 'weights', 'template_arguments'),
    *('words', 'prompt_tokens', 'max_tokens', 'temperature'),
)
