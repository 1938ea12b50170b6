"""A server of OpenAI's chat completions, so that any OpenAI client can use a policy that was trained here.

    POST /v1/chat/completions   {"model": ..., "messages": [{"role": "user", "content": "..."}], "stream": true, ...}
    GET  /v1/models

A generation is opened for `decode_steps` tokens at a time and extended until it ends. In between, waiting requests take
free slots, and requests of clients that have disconnected lose theirs.
"""

import codecs
import contextlib
import dataclasses
import functools
import itertools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from zerosearch_jax import pretrained, prng, settings, sharding
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.policy import PolicyConfig, policy_params
from zerosearch_jax.run import preflight, trained
from zerosearch_jax.text.tokenizer import Tokenizer, template_arguments
from zerosearch_jax.tools import server

MOST_STOPS, LONGEST_STOP = 16, 256  # strings, and characters of one
ROLES = {'system': 'system', 'developer': 'system', 'user': 'user', 'assistant': 'assistant', 'tool': 'tool'}
KNOWN = {'model', 'messages', 'max_tokens', 'max_completion_tokens', 'temperature', 'stop', 'seed', 'stream'}
KNOWN |= {'stream_options', 'chat_template_kwargs', 'user', 'metadata', 'store'}  # the last three are ignored
# other fields that clients send, accepted with these values, which have no effect
NEUTRAL = {'n': 1, 'top_k': -1, 'min_p': 0, 'presence_penalty': 0, 'frequency_penalty': 0, 'repetition_penalty': 1}
NEUTRAL |= {'logprobs': False, 'response_format': {'type': 'text'}, 'tools': [], 'logit_bias': {}}


@dataclasses.dataclass(frozen=True)
class ServeModelConfig:
    """How a model is served, and where."""

    name: str = ''  # name of the model for clients; '': config.policy.adapter, or config.policy.model
    host: str = '127.0.0.1'
    port: int = 8000  # 0: any free port
    slots: int = 8  # requests that are decoded together
    queue: int = 64  # requests that can wait for a slot; more are refused with status 429
    prompt_tokens: int = 1024  # the most tokens of a request's messages, in the model's chat template
    max_tokens: int = 512  # the most tokens of an answer
    temperature: float = 1.0  # default for requests; 0: greedy
    top_p: float = 1.0  # for all requests
    template_arguments: str = ''  # as in config.rollout.template_arguments
    timeout_s: float = 300.0  # limit of a request, from its arrival to the end of its answer
    decode_steps: int = 8  # tokens that one call of the engine decodes
    cache_gib: float = 0.0  # as in config.rollout.cache_gib

    def __post_init__(self):
        settings.require_positive(self, 'slots', 'prompt_tokens', 'max_tokens', 'decode_steps')
        template_arguments(self.template_arguments)
        server.require_port(self.port)


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration."""

    seed: int
    mesh: tuple[int, int, int]
    policy: PolicyConfig  # or the directory of a run, as `model`
    serve: ServeModelConfig


parse = functools.partial(settings.build, Config)


class Completion(server.Job):
    """One answer: its pieces are (text, reason); only the last has a reason, 'stop' or 'length'."""

    def __init__(self, timeout_s: float, request: Request, stops: Sequence[str]):
        super().__init__(timeout_s)
        self.request, self.tokens, self._stops = request, 0, stops
        self._decoder, self._held = codecs.getincrementaldecoder('utf-8')('replace'), ''

    @property
    def usage(self) -> dict:
        counts = {'prompt_tokens': len(self.request.prompt), 'completion_tokens': self.tokens}
        return counts | {'total_tokens': sum(counts.values())}

    def take(self, tokens: Sequence[int], reason: str, tokenizer: Tokenizer) -> bool:
        """Takes sampled tokens; returns whether the answer ends. A possible beginning of a stop string is held back."""
        text, end = self._held, ''
        for token in tokens:
            self.tokens, text = self.tokens + 1, text + self._decoder.decode(tokenizer.decode_bytes([token]))
            if found := [at for stop in self._stops if (at := text.find(stop)) >= 0]:
                text, end = text[: min(found)], 'stop'
                break
        else:
            if reason == 'eos' or self.tokens == self.request.budget:
                text, end = text + self._decoder.decode(b'', final=True), 'stop' if reason == 'eos' else 'length'
        kept = 0
        if not end:
            kept = max((n for s in self._stops for n in range(len(s)) if text.endswith(s[:n])), default=0)
        text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        if text or end:
            self.pieces.put((text, end))
        if end:
            self.pieces.put(None)
        return bool(end)


class Completions(server.Worker):
    """Answers requests on the slots of an engine."""

    def __init__(self, cfg: Config, engine: Engine, tokenizer: Tokenizer):
        super().__init__(engine.slots + cfg.serve.queue)
        self._cfg, self._engine, self._tokenizer, self._numbers = cfg, engine, tokenizer, itertools.count()
        self.name = cfg.serve.name or cfg.policy.adapter or cfg.policy.model
        self._live: dict[int, Completion] = {}

    @property
    def busy(self) -> int:
        return len(self._live)

    def advance(self):
        steps = self._cfg.serve.decode_steps
        with self._changed:
            while self._waiting and self.busy < self._engine.slots:
                if not (job := self._waiting.popleft()).over:
                    self._live[job.request.handle] = job
                    self._engine.open(dataclasses.replace(job.request, budget=min(job.request.budget, steps)))
        for stopped in self._engine.step() if self._live else ():
            job = self._live[stopped.handle]
            if job.take(stopped.tokens, stopped.reason, self._tokenizer) or job.over:
                self._engine.close(stopped.handle)
                del self._live[stopped.handle]
            else:
                self._engine.extend(stopped.handle, (), min(job.request.budget - job.tokens, steps))

    def job(self, body: dict) -> Completion:
        """The job of a request.

        Raises:
          ValueError: its fields are wrong, or ask for something that is not supported.
          Refused: it is for another model.
        """
        cfg, number = self._cfg.serve, next(self._numbers)
        if body.get('model', self.name) != self.name:
            raise server.Refused(404, f'the model {str(body["model"])[:80]!r} is not served; {self.name!r} is')
        neutral = NEUTRAL | {'top_p': cfg.top_p}
        for name, value in body.items():
            if name not in KNOWN and value is not None and value != neutral.get(name):
                can = f'can only be {json.dumps(neutral[name])} here' if name in neutral else 'is not supported'
                raise ValueError(f'"{name[:80]}" {can}')
        messages, arguments = _messages(body), template_arguments(cfg.template_arguments) | _arguments(body)
        prompt = tuple(self._tokenizer.chat(messages, arguments=arguments))
        if not prompt:  # of a model without a chat template
            raise ValueError('"messages" hold no text')
        if len(prompt) > cfg.prompt_tokens:
            raise ValueError(f'the messages are {len(prompt)} tokens, config.serve.prompt_tokens = {cfg.prompt_tokens}')
        most = 'max_tokens' if body.get('max_completion_tokens') is None else 'max_completion_tokens'
        budget = _number(body, most, cfg.max_tokens, 1, cfg.max_tokens, int)
        temperature = _number(body, 'temperature', cfg.temperature, 0, 2, int, float)
        seed = _number(body, 'seed', None, -(2**63), 2**63 - 1, int)
        who = ('number', number) if seed is None else ('seed', seed, json.dumps(messages))
        key = prng.row_key('policy', self._cfg.seed, *who)
        return Completion(cfg.timeout_s, Request(number, prompt, key, budget, float(temperature)), _stops(body))


def _messages(body: dict) -> list[dict]:
    given = body.get('messages')
    if not isinstance(given, list) or not given:
        raise ValueError('"messages" must be a list of objects with "role" and "content"')
    found = []
    for message in given:
        role, content = (message.get('role'), message.get('content')) if isinstance(message, dict) else (None, None)
        if isinstance(content, list) and all(isinstance(part, dict) and part.get('type') == 'text' for part in content):
            texts = [part.get('text') for part in content]
            content = ''.join(texts) if texts and all(isinstance(text, str) for text in texts) else None
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise ValueError(f'a message must have a "role" of {", ".join(ROLES)}, and a text as its "content"')
        found.append({'role': ROLES[role], 'content': content})
    return found


def _arguments(body: dict) -> dict:
    """Arguments of the chat template: no texts, which the template might write as control tokens."""
    given = body.get('chat_template_kwargs') or {}
    if not isinstance(given, dict) or any(not isinstance(value, bool | int | float) for value in given.values()):
        raise ValueError('"chat_template_kwargs" must be an object of numbers, true and false')
    return given


def _stops(body: dict) -> list[str]:
    given = body.get('stop') or []
    stops = [given] if isinstance(given, str) else given
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops)
    ):
        raise ValueError(f'"stop" must be a text, or at most {MOST_STOPS}, of 1 to {LONGEST_STOP} characters')
    return stops


def _number(body: dict, name: str, default: Any, low: float, high: float, *kinds: type) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in kinds or not low <= value <= high:
        raise ValueError(f'"{name}" must be {"a whole number" if kinds == (int,) else "a number"} from {low} to {high}')
    return value


def open_server(cfg: Config) -> server.Server:
    """Loads the model, and binds the address.

    Raises:
      ValueError, OSError: one line says what is wrong and what to set.
    """
    policy, serve, mesh = trained.resolve(cfg.policy), cfg.serve, sharding.make_mesh(cfg.mesh)
    preflight.check(cfg.mesh, {'policy': policy})
    model = pretrained.load_model(policy.model, mesh, policy.dtype)
    (engine,) = pretrained.open_engines(
        model,
        mesh,
        (Role(serve.slots),),
        cache_gib=serve.cache_gib,
        capacity=serve.prompt_tokens + serve.max_tokens,
        decode_steps=serve.decode_steps,
        dtype=policy.dtype,
        top_p=serve.top_p,
    )
    engine.load(policy_params(model, policy, mesh), owned=True)
    return server.Server(serve, Handler, Completions(cfg, engine, model.tokenizer))


class Handler(server.Handler):
    invalid = 400

    def answer(self, method: str, path: str, parameters: str = ''):
        worker = self.server.worker
        if (method, path) == ('GET', '/v1/models'):
            entry = {'id': worker.name, 'object': 'model', 'created': 0, 'owned_by': 'zerosearch_jax'}
            self.reply(200, {'object': 'list', 'data': [entry]})
        elif (method, path) == ('POST', '/v1/chat/completions'):
            body = self.body()
            job = worker.submit(worker.job(body))
            with contextlib.closing(self.follow(job)) as pieces:
                about = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': worker.name}
                if body.get('stream'):
                    self._stream(
                        pieces,
                        job,
                        about,
                        isinstance(asked := body.get('stream_options'), dict) and bool(asked.get('include_usage')),
                    )
                else:
                    self._whole(pieces, job, about)
        else:
            raise self.no_such('GET /v1/models, or POST to /v1/chat/completions')

    def _whole(self, pieces: Iterator, job: Completion, about: dict):
        texts, reasons = zip(*pieces, strict=True)
        message = {'role': 'assistant', 'content': ''.join(texts)}
        choice = {'index': 0, 'message': message, 'finish_reason': reasons[-1]}
        self.reply(200, about | {'object': 'chat.completion', 'choices': [choice], 'usage': job.usage})

    def _stream(self, pieces: Iterator, job: Completion, about: dict, with_usage: bool):
        """Sends each piece as an event."""
        about['object'] = 'chat.completion.chunk'
        first = next(pieces)  # a refusal until then still has its own status
        self.close_connection = True  # the end of the reply
        self.send_response(200)
        for name, value in (
            ('Content-Type', 'text/event-stream'),
            ('Cache-Control', 'no-cache'),
            ('Connection', 'close'),
        ):
            self.send_header(name, value)
        self.end_headers()
        try:
            delta = {'role': 'assistant'}
            for text, reason in itertools.chain([first], pieces):
                choice = {'index': 0, 'delta': delta | {'content': text}, 'finish_reason': reason or None}
                self._event(about | {'choices': [choice]})
                delta = {}
            if with_usage:
                self._event(about | {'choices': [], 'usage': job.usage})
            self.wfile.write(b'data: [DONE]\n\n')
        except server.Refused as error:
            self._event(self.told(error.status, str(error)))

    def _event(self, body: dict):
        self.wfile.write(b'data: ' + json.dumps(body).encode() + b'\n\n')

    def told(self, status: int, why: str) -> dict:
        kind = 'invalid_request_error' if status < 429 else 'server_error'
        return {'error': {'message': why, 'type': kind, 'param': None, 'code': status}}
