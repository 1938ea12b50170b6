"""The configuration of a simulator."""

import dataclasses
from typing import Literal

from zerosearch_jax import settings
from zerosearch_jax.text.tokenizer import template_arguments


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
    """Who plays the search engine, how it is asked, and how it is read."""

    # a model of ours, config.endpoint's, gold passages of the corpus, config.engine itself, or no search at all
    kind: Literal['model', 'endpoint', 'oracle', 'engine', 'none'] = 'model'
    model: str = 'smollm2-135m-instruct'  # as config.policy.model; of an endpoint the served model's name
    adapter: str = ''  # as config.policy.adapter
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    weights: Literal['as_loaded', 'int8'] = 'as_loaded'  # int8: a quarter of float32's memory
    template_arguments: str = ''  # as config.rollout.template_arguments: of the model's chat template
    template: str = 'tuned'  # wording: 'tuned', 'told', 'prompted', or a JSON file (prompts.SimulatorTemplate)
    style: str = 'documents'  # what they are called in the request, e.g. 'web snippets', 'encyclopedia passages'
    documents: int = 3  # documents a search
    words: int = 30  # words a document, as asked for
    tell: Literal['final', 'hop', 'none'] = 'final'  # whose answer requests tell: the question's, the hop's, no one's
    blind_noise: bool = False  # whether requests for noisy documents tell neither question nor answer
    questions: Literal['own', 'compacted'] = 'own'  # whose question a query carries: CompactedQuestions (defect D1)
    noise_per: Literal['search', 'document'] = 'search'  # what is useful or noisy as a whole
    prompt_tokens: int = 320  # tokens of one request: template, question, answer and query
    max_tokens: int = 160  # tokens of one output
    temperature: float = 0.8
    attempts: int = 3  # generations at most before the search counts as failed
    verify: bool = False  # whether documents that belie their label are written again, within the same attempts
    slots: int = 0  # requests that it answers at once; 0: as many as config.rollout has episodes
    cache_gib: float = 0.0  # as config.rollout.cache_gib, which alone counts where one engine serves both
    remember: str = ''  # a file of documents by all that they depend on and the seed, written once; '': written anew

    def __post_init__(self):
        template_arguments(self.template_arguments)
        settings.require_positive(self, 'documents', 'words', 'prompt_tokens', 'max_tokens', 'attempts')
        if self.slots < 0:
            raise ValueError(f'slots must not be negative, got {self.slots}')


# the fields that documents depend on, besides those that are in the request
WRITER_FIELDS = (
    *('kind', 'model', 'adapter', 'dtype', 'weights', 'template_arguments'),
    *('words', 'prompt_tokens', 'max_tokens', 'temperature'),
)
