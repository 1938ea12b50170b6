"""A whole step of TRL's GRPOTrainer: one prompt, `--group` samples of exactly `--new` tokens, all weights.

python -m benchmarks.peers.trl_step --weights .venv-peers/smollm2
"""

import tempfile
import time

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers import common, torch_model


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self):
        self.seconds, self.began = [], 0.0

    def on_step_begin(self, *args, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.began)


def reward(completions, **_) -> list[float]:
    return [text.count('e') / 100 for text in completions]


def main():
    parser = common.parser(__doc__)
    parser.add_argument('--group', type=int, default=8)
    parser.add_argument('--prompt', type=int, default=256)
    parser.add_argument('--new', type=int, default=128)
    args = parser.parse_args()
    tokenizer, clock = AutoTokenizer.from_pretrained(args.weights), Clock()
    word = next(word for word in (' search', 'e') if len(tokenizer(word).input_ids) == 1)
    prompt = word * args.prompt
    assert len(tokenizer(prompt).input_ids) == args.prompt
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=torch_model.load(args.weights).float(),  # what is trained is float32, with torch's autocast on a GPU
            reward_funcs=reward,
            args=config(args, directory),
            train_dataset=Dataset.from_dict({'prompt': [prompt] * (args.repeats + 1)}),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    lengths = [log['completions/mean_length'] for log in trainer.state.log_history if 'completions/mean_length' in log]
    assert set(lengths) == {args.new} and len(clock.seconds) == args.repeats + 1, lengths
    common.emit('GRPO step', 'torch', 'transformers', 'trl', seconds=common.spread(clock.seconds[1:]))


def config(args, directory: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=directory,
        per_device_train_batch_size=args.group,
        num_generations=args.group,
        max_completion_length=args.new,
        generation_kwargs={'min_new_tokens': args.new},
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        learning_rate=1e-6,
        max_steps=args.repeats + 1,
        gradient_checkpointing=False,
        use_cpu=torch_model.DEVICE == 'cpu',
        bf16=torch_model.DEVICE == 'cuda',
        logging_steps=1,
        report_to=[],
        save_strategy='no',
        disable_tqdm=True,
    )


if __name__ == '__main__':
    main()
