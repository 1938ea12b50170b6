"""Fixed-length generation with transformers: prompts of random ids, then exactly `--new` tokens a row.

python -m benchmarks.peers.transformers_decode --weights .venv-peers/smollm2 --batch 16
"""

from benchmarks.peers import common, torch_model


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    args = parser.parse_args()
    model = torch_model.load(args.weights)
    rows = torch_model.random_rows(model, args.batch, args.prompt)

    def call(new: int) -> float:
        return common.seconds(lambda: torch_model.generate(model, rows, new))

    call(2)  # nothing is compiled, so this much warms it up
    prefill = [call(1) for _ in range(args.repeats)]
    whole = [call(args.new) for _ in range(args.repeats)]
    common.emit_decode(args.batch, args.new, whole, prefill, 'torch', 'transformers')


if __name__ == '__main__':
    main()
