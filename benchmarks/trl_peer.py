"""TRL's GRPOTrainer as one contestant of `benchmarks.rlvr_vs_trl`: a process of its own that writes one JSON line a step.

    python -m benchmarks.trl_peer --model DIR --workload w1 --generate vllm --micro 16 --gate DIR --rows FILE

TRL's colocated vLLM does not run on a CPU as it is: it asks for half precision, and its weight update loads into layers that
keep only packed copies of their weights (vLLM 0.32). `_patch_vllm` mends both, so that figure is "TRL with vLLM, patched".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.workloads import GROUP_SIZE, GROUPS, PROMPT_WORDS, TOKENS, Gate, prompt, reward


class StepTimes:
    """Seconds spent inside named calls since the last step."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def wrap(self, owner: Any, method: str, stage: str) -> None:
        """Count the time of a bound method under a stage."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*words: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*words, **more)
            finally:
                self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - began

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        spent, self.spent = self.spent, {}
        return spent


def _patch_vllm() -> None:
    import importlib

    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    generation: Any = importlib.import_module("trl.generation.vllm_generation")
    plain = generation.LLM

    def float32(*words: Any, **more: Any) -> Any:
        return plain(*words, **{**more, "dtype": "float32", "enforce_eager": True, "max_num_seqs": 256})

    def sync_weights(self: Any) -> None:
        runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
        runner.reload_weights(weights_iterator=((n, p.detach()) for n, p in self._iter_named_params()))
        model = runner.model
        if model.lm_head.weight is model.model.embed_tokens.weight:
            dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
        self.llm.reset_prefix_cache()

    generation.LLM = float32
    generation.VLLMGeneration.sync_weights = sync_weights


def build(args: argparse.Namespace) -> tuple[Any, StepTimes]:
    """The trainer and its stage clock."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    gate = None if args.gate is None else Gate(args.gate)
    step = 0

    def share_of_sevens(completions: list[str], **_: Any) -> list[float | None]:
        nonlocal step
        if gate is not None:
            gate.wait(step)
        step += 1
        return [reward(text) for text in completions]

    batch, vllm = GROUPS * GROUP_SIZE, args.generate == "vllm"
    if vllm:
        _patch_vllm()
    config = GRPOConfig(
        output_dir=str(args.rows.with_suffix(".trl")),
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=batch // args.micro,
        num_generations=GROUP_SIZE,
        max_completion_length=TOKENS[args.workload],
        max_steps=args.steps,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        beta=0.0,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
        use_vllm=vllm,
        vllm_mode="colocate",
        vllm_max_model_length=PROMPT_WORDS + TOKENS[args.workload],
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        reward_funcs=share_of_sevens,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt(i)} for i in range(256)]),
        processing_class=AutoTokenizer.from_pretrained(args.model, padding_side="left"),
    )
    times = StepTimes()
    times.wrap(trainer, "_generate_single_turn", "generate")
    if vllm:
        times.wrap(trainer.vllm_generation, "sync_weights", "weights")
    times.wrap(trainer, "_get_per_token_logps_and_entropies", "forward")
    times.wrap(trainer, "training_step", "training_step")
    times.wrap(trainer, "_prepare_inputs", "prepare")
    return trainer, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", choices=sorted(TOKENS), required=True)
    parser.add_argument("--generate", choices=["transformers", "vllm"], required=True)
    parser.add_argument("--micro", type=int, required=True)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    args = parser.parse_args()

    from transformers import TrainerCallback

    trainer, times = build(args)

    class Clock(TrainerCallback):
        began, tokens = 0.0, 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.take()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds, spent = time.perf_counter() - self.began, times.take()
            lengths = trainer._metrics["train"]["completions/mean_length"]
            row = {
                "seconds": seconds,
                "tokens": lengths[-1] * GROUPS * GROUP_SIZE,
                "generate": spent.get("generate", 0.0) - spent.get("weights", 0.0),
                "weights": spent.get("weights", 0.0),
                # what `prepare` holds beside the generation: old log-probs (with vLLM), rewards, advantages
                "prepare": spent["prepare"] - spent.get("generate", 0.0),
                "forward_backward": spent["training_step"] - spent["prepare"],
            }
            row["rest"] = seconds - sum(v for k, v in row.items() if k not in ("seconds", "tokens"))
            with args.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")

    trainer.add_callback(Clock())
    trainer.train()


if __name__ == "__main__":
    main()
