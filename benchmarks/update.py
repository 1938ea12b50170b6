"""The update: all weights of the model with AdamW, on full rows and on packed search trajectories.

python -m benchmarks.update
python -m benchmarks.update --remat none dots full --micro 1 2    # each with each

`share` is of the measured matmul peak, counting 6 operations a weight and token (the logits of every weighted token
included), nothing for recomputation; `tflops_6n` is the common figure of 6 a weight and token, attention left out.
"""

import itertools
import json
import pathlib

import jax
import numpy as np

from benchmarks import common
from zerosearch_jax import sharding
from zerosearch_jax.models import attention, transformer
from zerosearch_jax.rl import losses, state, step
from zerosearch_jax.text.trajectory import Kind, Segment, TokenSequence, flatten, pack, padding_share

OBSERVATION, PROMPT = 150, 115


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--length', type=int, default=512, help='tokens a row')
    parser.add_argument('--micro', type=int, nargs='+', default=[1], help='rows a micro-batch')
    parser.add_argument('--remat', nargs='+', default=['none'], choices=transformer.REMAT_POLICIES)
    parser.add_argument('--groups', type=int, default=4, help='groups of 8 search trajectories in the packed batch')
    parser.add_argument('--row', type=int, default=0, help='tokens a packed row; 0: three times --length')
    parser.add_argument('--trajectories', type=pathlib.Path, help='pack these (search_step --record) instead')
    args = parser.parse_args()
    mesh = sharding.make_mesh()
    model = common.load_model(args.model, mesh)
    variants = list(itertools.product(args.micro, args.remat))
    for micro, remat in variants:
        about = f', {micro} a micro-batch, remat {remat}' if len(variants) > 1 else ''
        with common.guarded(f'update, full rows{about}'):
            measure(f'update, full rows{about}', model, mesh, args, full_rows(model.cfg, args, micro), remat)
    made = read(args.trajectories) if args.trajectories else invented(model.cfg, args)
    advantages, row = np.random.default_rng(0).normal(size=len(made)), args.row or 3 * args.length
    batch = pack(made, advantages, row_length=row, rows_per_micro=args.micro[0])
    with common.guarded('update, packed trajectories'):
        measure('update, packed trajectories', model, mesh, args, batch, args.remat[0])


def full_rows(cfg, args, micro: int):
    tokens = common.random_tokens(cfg, args.rows, args.length)
    rows = [flatten([Segment(Kind.ACTION, tuple(row.tolist()))]) for row in tokens]
    return pack(rows, np.ones(args.rows), row_length=args.length, rows_per_micro=micro)


def read(path: pathlib.Path) -> list[TokenSequence]:
    """Trajectories of a file; what comes before the first action but one token may be shared."""
    made = []
    for row in json.loads(path.read_text()):
        weights = np.array(row['weights'], np.float32)
        tokens, prefix = np.array(row['tokens'], np.int32), int(weights.argmax()) - 1
        made.append(TokenSequence(tokens, weights, np.zeros_like(weights), prefix))
    return made


def invented(cfg, args) -> list[TokenSequence]:
    """Search trajectories of one to four actions, with a long and random spread of lengths."""
    rng = np.random.default_rng(0)

    def ids(n):
        return tuple(int(i) for i in rng.integers(1, cfg.vocab_size - 1, n))

    made = []
    for _ in range(args.groups):
        prompt = Segment(Kind.PROMPT, ids(PROMPT))
        for _ in range(8):
            segments = [prompt, Segment(Kind.ACTION, ids(rng.integers(30, 60)))]
            for _ in range(rng.integers(0, 4)):
                segments += [
                    Segment(Kind.OBSERVATION, ids(OBSERVATION)),
                    Segment(Kind.ACTION, ids(rng.integers(30, 60))),
                ]
            made.append(flatten(segments))
    return made


def measure(name: str, model, mesh, args, batch, remat: str):
    layout, tx = transformer.layout(model.cfg), state.optimizer(state.OptimizerConfig(learning_rate=1e-6), 100)
    shardings = state.state_shardings(layout, tx, mesh)
    compute = losses.Compute(
        args.dtype, remat, attention=attention.choose(model.cfg, args.dtype, mesh, batch.tokens.shape[-1]).name
    )
    update = step.make_update(model.cfg, tx, shardings, losses.LossConfig(kl=0.0), compute)
    with jax.set_mesh(mesh):
        current = state.create(jax.tree.map(lambda x: x.copy(), model.params), tx, shardings)
        update = update.lower(current, {}, batch).compile()

        def once():
            nonlocal current
            current, metrics = update(current, {}, batch)
            return metrics

        times = common.timed(once, args.repeats)
    used, targets = int((batch.segments > 0).sum()), int((batch.weights > 0).sum())
    context = float(batch.positions[batch.segments > 0].mean())
    body = common.forward_flops(model.cfg, context, head=False)
    head = 2 * model.cfg.vocab_size * model.cfg.hidden_size
    work = 3 * (used * body + targets * head)
    limits = common.limits(args.dtype)
    common.emit(
        name,
        model=args.model,
        seconds=common.spread(times),
        tokens_per_second=common.spread([used / t for t in times]),
        share=common.spread([1e-9 * work / t / limits['gflops'] for t in times]),
        tokens=used,
        tflops_6n=common.spread([6e-12 * used / t * transformer.num_parameters(model.cfg) for t in times]),
        temporaries_gib=update.memory_analysis().temp_size_in_bytes / 2**30,
        padding=padding_share(batch),
        attention=compute.attention,
        limits=limits,
    )


if __name__ == '__main__':
    main()
