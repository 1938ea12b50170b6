"""Our side of the step of TRL and tunix: one prompt, `--group` samples of exactly `--new` tokens, all weights.

python -m benchmarks.peers.grpo_step
"""

import jax
import numpy as np

from benchmarks import common
from zerosearch_jax import prng, sharding
from zerosearch_jax.generate.engine import Engine, Request
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.models import transformer
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.text import stop
from zerosearch_jax.text.trajectory import Kind, Segment, flatten, pack


def main():
    parser = common.parser(__doc__, repeats=2)
    parser.add_argument('--group', type=int, default=8)
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    args = parser.parse_args()
    mesh = sharding.make_mesh()
    model = common.load_model(args.model, mesh)
    slots = Slots(
        model.cfg,
        mesh,
        [Role(args.group)],
        capacity=args.prompt + args.new,
        stop=stop.compile_table((), model.token_bytes),
        eos_ids=(),
        dtype=args.dtype,
    )
    engine = Engine(slots)
    tx = state.optimizer(state.OptimizerConfig(learning_rate=1e-6), 100)
    shardings = state.state_shardings(transformer.layout(model.cfg), tx, mesh)
    update = step.make_update(model.cfg, tx, shardings, losses.LossConfig(kl=0.0), losses.Compute(args.dtype))
    prompt = tuple(common.random_tokens(model.cfg, args.prompt).tolist())
    with jax.set_mesh(mesh):
        current, steps = state.create(model.params, tx, shardings), 0

        def once():
            nonlocal current, steps
            engine.load(current.params)
            current, metrics = update(current, {}, batch_of(rollout(engine, prompt, args, steps), prompt, args))
            steps += 1
            return metrics

        times = common.timed(once, args.repeats)
    common.emit('GRPO step', model=args.model, seconds=common.spread(times))


def rollout(engine: Engine, prompt: tuple[int, ...], args, number: int) -> list:
    for sample in range(args.group):
        key = prng.row_key('policy', 0, number, 0, sample)
        engine.open(Request(sample, prompt, key, args.new))
    done = []
    while engine.active:
        done += engine.step()
    for stopped in done:
        engine.close(stopped.handle)
    assert [len(stopped.tokens) for stopped in done] == [args.new] * args.group
    return done


def batch_of(done: list, prompt: tuple[int, ...], args):
    """All samples behind one copy of the prompt in one row; any reward will do, here how many ids are even."""
    rewards = np.array([np.mean(np.array(stopped.tokens) % 2 == 0) for stopped in done])
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    first = Segment(Kind.PROMPT, prompt)
    sequences = [flatten([first, Segment(Kind.ACTION, s.tokens, s.logprobs)]) for s in done]
    length = args.prompt + args.group * (args.new + 1)  # every sample keeps the prompt's last token
    return pack(sequences, advantages, row_length=-(-length // 128) * 128, rows_per_micro=1)


if __name__ == '__main__':
    main()
