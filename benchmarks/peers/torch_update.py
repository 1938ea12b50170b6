"""The update in plain PyTorch: clipped policy gradient, AdamW on all weights, float32, nothing recomputed.

python -m benchmarks.peers.torch_update --weights .venv-peers/smollm2
python -m benchmarks.peers.torch_update --weights .venv-peers/smollm2 --trajectories .venv-peers/trajectories.json

The first is on full rows of random tokens in one batch. The second is on given trajectories, in micro-batches of
`--micro` rows that are padded on the right to the longest of the whole batch. Both hold the logits of every position.
"""

from __future__ import annotations

import json
import pathlib

import torch
import torch.nn.functional as F

from benchmarks.peers import common, torch_model


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--length', type=int, default=512, help='tokens a row')
    parser.add_argument('--trajectories', type=pathlib.Path, help='JSON: [{"tokens": [...], "weights": [...]}, ...]')
    parser.add_argument('--micro', type=int, default=4, help='trajectories a micro-batch')
    args = parser.parse_args()
    model = torch_model.load(args.weights)
    if args.trajectories:
        name, micro, given = 'update, packed trajectories', args.micro, json.loads(args.trajectories.read_text())
        rows, weights = [t['tokens'] for t in given], [t['weights'] for t in given]
    else:
        name, micro, rows = 'update, full rows', args.rows, torch_model.random_rows(model, args.rows, args.length)
        weights = [[1.0] * args.length] * args.rows
    learner = Learner(model, micro)
    learner.update(rows[:1], weights[:1])  # makes the optimizer's state
    times = [common.seconds(lambda: learner.update(rows, weights)) for _ in range(args.repeats)]
    used = sum(map(len, rows))
    common.emit(
        name,
        'torch',
        'transformers',
        seconds=common.spread(times),
        tokens_per_second=common.spread([used / t for t in times]),
        tokens=used,
        padding=round(1 - used / (len(rows) * max(map(len, rows))), 3),
    )


class Learner:
    """A model and its optimizer."""

    def __init__(self, model, micro: int):
        self.model, self.micro = model, micro
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)

    def update(self, rows: list[list[int]], weights: list[list[float]]):
        """One optimizer step on all rows, with random advantages."""
        width, total = max(map(len, rows)), max(sum(map(sum, weights)), 1.0)
        tokens, weights = padded(rows, width, torch.long), padded(weights, width, torch.float32)
        mask = padded([[1] * len(row) for row in rows], width, torch.long)
        advantages = torch.randn(len(rows), 1)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = zip(*(x.split(self.micro) for x in (tokens, mask, weights, advantages)), strict=True)
        for part in parts:
            (self.loss(*part) / total).backward()
        self.optimizer.step()

    def loss(self, tokens, mask, weights, advantages) -> torch.Tensor:
        """Sum over the weighted tokens; the policy is the one that sampled, so the ratio is one but has a gradient."""
        logits = self.model(tokens, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        logprobs = F.log_softmax(logits, dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
        ratio = torch.exp(logprobs - logprobs.detach())
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        return -(surrogate * weights[:, 1:]).sum()


def padded(rows: list[list], width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype)


if __name__ == '__main__':
    main()
