"""A whole step of tunix's GRPOLearner: one prompt, `--group` samples of exactly `--new` tokens, all weights, float32.

python -m benchmarks.peers.tunix_step --weights .venv-peers/smollm2
"""

import time

import jax
import numpy as np
import optax
from flax import nnx
from transformers import AutoTokenizer
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.peers import common, tunix_model

WARM_UP = 2  # steps; both compile


def reward(prompts, completions, **_) -> list[float]:
    return [text.count('e') / 100 for text in completions]


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--group', type=int, default=8)
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    args = parser.parse_args()
    model, _, mesh = tunix_model.load(args.weights)
    tokenizer = AutoTokenizer.from_pretrained(args.weights)
    cluster = rl_cluster.RLCluster(actor=model, reference=None, tokenizer=tokenizer, cluster_config=config(args, mesh))
    clock = []  # when each rollout began
    generate = cluster.generate

    def timed(*inputs, **options):
        clock.append(time.perf_counter())
        done = generate(*inputs, **options)
        assert len(done.tokens) == args.group and {len(tokens) for tokens in done.tokens} == {args.new}
        assert done.left_padded_prompt_tokens.shape[1] == args.prompt
        return done

    cluster.generate = timed
    algorithm = grpo_learner.GRPOConfig(num_generations=args.group, num_iterations=1, beta=0.0)
    learner = grpo_learner.GRPOLearner(rl_cluster=cluster, reward_fns=reward, algo_config=algorithm)
    prompt = np.array([' search' * (args.prompt - 1)])  # it puts a beginning-of-sequence token before
    learner.train([{'prompts': prompt} for _ in range(args.repeats + WARM_UP)])
    jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
    clock.append(time.perf_counter())
    steps = np.diff(clock).tolist()[WARM_UP:]
    assert len(steps) == args.repeats
    common.emit('GRPO step', 'google-tunix', 'jax', 'flax', seconds=common.spread(steps))


def config(args, mesh) -> rl_cluster.ClusterConfig:
    role = rl_cluster.Role
    return rl_cluster.ClusterConfig(
        role_to_mesh={role.ACTOR: mesh, role.REFERENCE: mesh, role.ROLLOUT: mesh},
        rollout_engine='vanilla',
        offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-6, weight_decay=0.0),
            eval_every_n_steps=10**6,
            max_steps=args.repeats + WARM_UP,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=args.new,
            max_prompt_length=args.prompt,
            kv_cache_size=args.prompt + args.new + 8,
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[-1],
        ),
    )


if __name__ == '__main__':
    main()
