"""A reward model from pairwise preferences, by TRL's RewardTrainer. `reward_model.path` of any run takes the folder it writes.

    python examples/preferences.py MODEL PAIRS OUT [--epochs 1] [--lr 1e-4] [--batch 32]

MODEL: a causal language model's folder, best the one that the policy starts from (they must have the same vocabulary).
PAIRS: rows of {"prompt": ..., "chosen": ..., "rejected": ...}; .jsonl, .json, .csv or hf:NAME. Prompts are text, or chat messages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs import rows
from models.chat import ChatFormat
from models.loading import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pairs", "out"):
        parser.add_argument(name)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()

    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    tokenizer = load_tokenizer(args.model)
    try:
        told = [_ids(ChatFormat(tokenizer), row) for row in rows.read(args.pairs)]
    except ValueError as error:
        sys.exit(str(error))
    config = RewardConfig(
        output_dir=args.out,
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        per_device_train_batch_size=args.batch,
        # Bradley and Terry fix differences of scores only; this keeps their sum near 0
        center_rewards_coefficient=0.01,
        save_strategy="no",
        report_to=[],
        bf16=False,
    )
    trainer = RewardTrainer(args.model, config, train_dataset=Dataset.from_list(told), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(args.out)


def _ids(chat: ChatFormat, row: rows.Row) -> dict[str, list[int]]:
    """Both answers behind their prompt, as ids: exactly what the reward model will read in a run."""
    value: Any = row.value
    for name in ("prompt", "chosen", "rejected"):
        if not isinstance(value, dict) or not value.get(name):
            raise ValueError(f"{row.place}: a pair has a prompt, a chosen and a rejected answer; {name} is missing")
    prompt = chat.prompt_ids(value["prompt"]).tolist()
    return {f"{name}_ids": [*prompt, *chat.emission_ids((), value[name]).tolist()] for name in ("chosen", "rejected")}


if __name__ == "__main__":
    main()
