"""A whole step on simulated search: rollouts of several groups, and the update, with the time of each part.

python -m benchmarks.search_step

The quickstart's configuration and adapters, with `--questions` x `--group` trajectories of real length.
"""

import time

import jax
import numpy as np

from benchmarks import common
from configs import quickstart
from zerosearch_jax import train_rl


def main():
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument('--questions', type=int, default=8)
    parser.add_argument('--group', type=int, default=8)
    parser.add_argument('--slots', type=int, default=16, help='of each engine')
    parser.add_argument('--row', type=int, default=768, help='tokens of a row of the update')
    args = parser.parse_args()
    config = quickstart.get_config()
    config.evaluation.questions = 0
    config.rollout.update(questions=args.questions, group=args.group, slots=args.slots)
    config.simulator.slots = args.slots
    config.rl.row_length = args.row
    trainer = train_rl.Trainer(train_rl.parse(config), None)
    trainer.load_simulator()
    clocks = {'policy': clock(trainer.policy_engine), 'simulator': clock(trainer.simulator_engine)}
    for repeat in range(args.repeats + 1):
        counted = {name: (engine.decoded_tokens, engine.prefilled_tokens) for name, (engine, _) in clocks.items()}
        for _, seconds in clocks.values():
            seconds.clear()
        began = time.perf_counter()
        trajectories = trainer.collect(repeat + 1)
        collected = time.perf_counter()
        trainer.learn(trainer.batch(trajectories, np.random.default_rng(0).normal(size=len(trajectories))))
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
        common.emit(
            f'search step, {args.questions} x {args.group}',
            seconds=ended - began,
            rollout_seconds=collected - began,
            update_seconds=ended - collected,
            host_seconds=collected - began - figures['policy_seconds'] - figures['simulator_seconds'],
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
        jax.block_until_ready(engine._cache)
        seconds.append(time.perf_counter() - began)
        return stopped

    engine.step = step
    return engine, seconds


if __name__ == '__main__':
    main()
