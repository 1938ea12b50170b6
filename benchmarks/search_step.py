"""A whole step on simulated search: rollouts of several groups, and the update, with the time of each part.

python -m benchmarks.search_step

The quickstart's configuration and adapters, with `--questions` x `--group` trajectories of real length; those of
configs/tiny.py with `--model tiny`. `--record` writes what the last step did, for benchmarks.peers.transformers_search
to do the same work.
"""

import collections
import itertools
import json
import pathlib
import time

import numpy as np

from benchmarks import common
from configs import quickstart, tiny
from zerosearch_jax.text import protocol
from zerosearch_jax.text.trajectory import Kind, flatten
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train.rl import Past
from zerosearch_jax.train.trainer import Trainer

EXPERIMENTS = {common.MODEL: quickstart, 'tiny': tiny}  # by --model


def main():
    parser = common.parser(__doc__, repeats=1, models=EXPERIMENTS)
    parser.add_argument('--questions', type=int, default=8)
    parser.add_argument('--group', type=int, default=8)
    parser.add_argument('--slots', type=int, default=32, help='of each engine')
    parser.add_argument('--row', type=int, help="tokens of a row of the update; without it the configuration's")
    parser.add_argument('--lora-rank', type=int, default=8, help='of the policy; 0: all weights are trained')
    parser.add_argument('--kl', type=float, default=0.001, help='0: no reference policy')
    parser.add_argument('--record', type=pathlib.Path, help='JSON file')
    args = parser.parse_args()
    config = EXPERIMENTS[args.model].get_config()
    config.evaluation.questions = 0
    config.rollout.update(questions=args.questions, group=args.group, slots=args.slots)
    config.simulator.slots = args.slots
    config.rl.update(row_length=args.row or config.rl.row_length, kl=args.kl)
    config.policy.lora_rank = args.lora_rank
    config.policy.dtype = config.simulator.dtype = args.dtype
    trainer = Trainer(train_config.parse(config), None)
    trainer.load_simulator()
    engines = {'policy': trainer.policy_engine, 'simulator': trainer.simulator.engine}
    clocks = {name: clock(engine) for name, engine in engines.items()}
    simulated = listen(trainer.simulator.engine)
    for repeat in range(args.repeats + 1):
        simulated.clear()
        counted = {name: (engine.decoded_tokens, engine.prefilled_tokens) for name, (engine, _) in clocks.items()}
        for _, seconds in clocks.values():
            seconds.clear()
        began = time.perf_counter()
        trajectories = trainer.collect(repeat + 1, Past().noise(trainer.cfg, repeat + 1))
        collected = time.perf_counter()
        rewards = np.random.default_rng(0).normal(size=len(trajectories))
        groups, valid = np.repeat(np.arange(args.questions), args.group), np.array([not t.failed for t in trajectories])
        trainer.learner.learn(repeat + 1, [t.segments for t in trajectories], rewards, groups, valid)
        ended = time.perf_counter()
        if repeat == 0:  # compiles
            continue
        figures = {}
        for name, (engine, seconds) in clocks.items():
            decoded, prefilled = counted[name]
            figures |= {
                f'{name}_seconds': sum(seconds),
                f'{name}_decoded': engine.decoded_tokens - decoded,
                f'{name}_prefilled': engine.prefilled_tokens - prefilled,
            }
        if args.record:
            args.record.write_text(json.dumps(recorded(trajectories, simulated, trainer)))
        common.emit(
            f'search step, {args.questions} x {args.group}',
            seconds=ended - began,
            rollout_seconds=collected - began,
            update_seconds=ended - collected,
            host_seconds=collected - began - sum(sum(seconds) for _, seconds in clocks.values()),
            searches=sum(len(t.searches) for t in trajectories),
            trajectory_tokens=sum(len(s.tokens) for t in trajectories for s in t.segments),
            **figures,
        )


def clock(engine):
    """The engine, and a list that receives the seconds of each of its steps."""
    seconds, run = [], engine.step

    def step():
        began = time.perf_counter()
        stopped = run()
        seconds.append(time.perf_counter() - began)
        return stopped

    engine.step = step
    return engine, seconds


def listen(engine) -> dict[tuple, list]:
    """Receives the prompt and the number of tokens of every generation, a list for each trajectory."""
    seen, open_, run = collections.defaultdict(list), engine.open, engine.step

    def opened(request):
        seen[request.handle[0]].append([request.prompt, 0])
        open_(request)

    def step():
        stopped = run()
        for generation in stopped:
            seen[generation.handle[0]][-1][1] = len(generation.tokens)
        return stopped

    engine.open, engine.step = opened, step
    return seen


def recorded(trajectories, simulated: dict[tuple, list], trainer: Trainer) -> dict:
    """The lengths and texts that decide how much work the rollout is, turn by turn."""
    turns, notice = [], trainer.model.tokenizer.encode(protocol.INVALID_NOTICE)
    for trajectory in trajectories:
        generations = iter(simulated[(trajectory.question.id, trajectory.sample)])
        searches, own = iter(trajectory.searches), []
        for kind, segments in itertools.groupby(trajectory.segments[1:], lambda s: s.kind):
            tokens = [int(token) for s in segments for token in s.tokens]
            if kind is Kind.ACTION:
                own.append({'action': len(tokens), 'observation': [], 'simulator_prompt': None, 'simulator_tokens': 0})
                continue
            own[-1]['observation'] = tokens
            if tokens != list(notice):
                search = next(searches)
                prompt, length = list(itertools.islice(generations, search.attempts))[-1]
                own[-1] |= {'simulator_prompt': list(map(int, prompt)), 'simulator_tokens': length}
        turns.append(own)
    flat = [flatten(t.segments) for t in trajectories]
    return {
        'turn_tokens': trainer.cfg.rollout.turn_tokens,
        'prompts': [list(map(int, t.segments[0].tokens)) for t in trajectories],
        'turns': turns,
        'trajectories': [{'tokens': f.tokens.tolist(), 'weights': f.weights.tolist()} for f in flat],
    }


if __name__ == '__main__':
    main()
