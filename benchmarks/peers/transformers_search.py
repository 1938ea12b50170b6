"""A recorded search rollout with transformers, turn by turn, and the padded update on what it wrote.

python -m benchmarks.search_step --record .venv-peers/record.json
python -m benchmarks.peers.transformers_search --weights .venv-peers/smollm2 --record .venv-peers/record.json --update

In every turn the histories of all that still run are padded on the left and read again, and each row writes to the
limit of the turn; then the simulator answers all queries in one batch. Lengths are those of the record: an action is
cut to its recorded length, and the recorded observation follows. `--stops known`: it knows the longest action of each
turn beforehand and stops there.
"""

import json
import pathlib
import time

from benchmarks.peers import common, torch_model
from benchmarks.peers.torch_update import Learner


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--record', type=pathlib.Path, required=True, help='written by our benchmarks.search_step')
    parser.add_argument('--batch', type=int, default=64, help='rows of one call')
    parser.add_argument(
        '--stops', nargs='+', choices=common.STOPS, default=list(common.STOPS), help='where turns end: a rollout each'
    )
    parser.add_argument('--update', action='store_true', help='also update on the trajectories')
    parser.add_argument('--micro', type=int, default=4, help='trajectories a micro-batch of the update')
    args = parser.parse_args()
    model, record = torch_model.load(args.weights), json.loads(args.record.read_text())
    torch_model.generate(model, record['prompts'][: args.batch], 2)
    learner = Learner(model, args.micro)
    learner.update([record['prompts'][0]], [[1.0] * len(record['prompts'][0])])
    for stops in args.stops:
        runs = [Rollout(model, record, args.batch, stops == 'known') for _ in range(args.repeats)]
        for run in runs:
            run.all_turns()
        update = []
        if args.update:
            update = [common.seconds(lambda run=run: learner.update(run.tokens, run.weights)) for run in runs]
        report(f'search step, {common.STOPS[stops]}', runs, update)


class Rollout:
    """The trajectories of a record while they are written again."""

    def __init__(self, model, record: dict, batch: int, known: bool):
        self.model, self.record, self.batch, self.known = model, record, batch, known
        self.tokens = [list(prompt) for prompt in record['prompts']]
        self.weights = [[0.0] * len(prompt) for prompt in record['prompts']]
        self.policy_seconds = self.simulator_seconds = 0.0
        self.decoded = 0  # tokens of all calls, those that are cut off included

    def all_turns(self):
        for turn in range(max(map(len, self.record['turns']))):
            running = [i for i, turns in enumerate(self.record['turns']) if turn < len(turns)]
            for begin in range(0, len(running), self.batch):
                rows = running[begin : begin + self.batch]
                self.one_turn(rows, [self.record['turns'][i][turn] for i in rows])

    def one_turn(self, rows: list[int], recorded: list[dict]):
        limit = max(t['action'] for t in recorded) if self.known else self.record['turn_tokens']
        began = time.perf_counter()
        written = torch_model.generate(self.model, [self.tokens[i] for i in rows], limit)
        acted = time.perf_counter()
        queries = [t for t in recorded if t['simulator_prompt']]
        longest = max((t['simulator_tokens'] for t in queries), default=0)
        if longest:
            torch_model.generate(self.model, [t['simulator_prompt'] for t in queries], longest)
        self.policy_seconds += acted - began
        self.simulator_seconds += time.perf_counter() - acted
        self.decoded += len(rows) * limit + len(queries) * longest
        for i, action, t in zip(rows, written, recorded, strict=True):
            self.tokens[i] += action[: t['action']] + t['observation']
            self.weights[i] += [1.0] * min(t['action'], limit) + [0.0] * len(t['observation'])


def report(name: str, runs: list[Rollout], update: list[float]):
    rollout = [run.policy_seconds + run.simulator_seconds for run in runs]
    figures = {
        'policy_seconds': [run.policy_seconds for run in runs],
        'simulator_seconds': [run.simulator_seconds for run in runs],
        'rollout_seconds': rollout,
    }
    if update:
        figures['update_seconds'] = update
        figures['seconds'] = [a + b for a, b in zip(rollout, update, strict=True)]
    common.emit(
        name,
        'torch',
        'transformers',
        **{field: common.spread(values) for field, values in figures.items()},
        decoded=runs[0].decoded,
        trajectory_tokens=sum(map(len, runs[0].tokens)),
    )


if __name__ == '__main__':
    main()
