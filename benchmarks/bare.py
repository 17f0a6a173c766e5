"""What no trainer can do without, measured bare: generation by an in-process vLLM, and forward and backward passes in torch.

    python -m benchmarks.bare generate --model DIR --workload w2 --gate DIR --rows FILE
    python -m benchmarks.bare learn    --model DIR --workload w2 --gate DIR --rows FILE --lengths FILE

`generate` is one `LLM.generate` of a batch's prompts without log-probabilities or seeds. `learn` is a forward pass, the
log-softmax of the answers' tokens and a backward pass of a plain transformers model over sequences of the lengths in FILE (the
lengths that `generate` wrote), sorted by length into micro-batches of at most `--budget` padded positions; no optimiser step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.workloads import GROUP_SIZE, GROUPS, PROMPT_WORDS, TOKENS, Gate, prompt


def generate(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "TORCH_COMPILE_DISABLE": "1"}
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    most = TOKENS[args.workload]
    llm = LLM(
        args.model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=PROMPT_WORDS + most,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        block_size=32,
        kv_cache_memory_bytes=512 * 2**20,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    params = SamplingParams(temperature=1.0, max_tokens=most, stop_token_ids=[1], detokenize=False)
    for step in itertools.count():
        prompts: Any = [
            {"prompt_token_ids": tokenizer(prompt(GROUPS * step + i)).input_ids}
            for i in range(GROUPS)
            for _ in range(GROUP_SIZE)
        ]
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        lengths = [len(output.outputs[0].token_ids) for output in outputs]
        yield {"seconds": seconds, "tokens": sum(lengths), "lengths": lengths}


def learn(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    for step in itertools.count():
        written = [json.loads(line)["lengths"] for line in args.lengths.read_text().splitlines()]
        lengths = sorted(written[step % len(written)])
        batches: list[list[int]] = []
        for n in lengths:
            full = PROMPT_WORDS + n
            if batches and (len(batches[-1]) + 1) * full <= args.budget:
                batches[-1].append(n)
            else:
                batches.append([n])
        began = time.perf_counter()
        for rows in batches:
            ids = torch.randint(3, 1000, (len(rows), PROMPT_WORDS + max(rows)))
            wanted = torch.zeros(ids.shape, dtype=torch.bool)
            for b, n in enumerate(rows):
                wanted[b, PROMPT_WORDS : PROMPT_WORDS + n] = True
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][wanted[:, 1:]]
            logprobs = torch.log_softmax(model.lm_head(hidden), -1).gather(-1, ids[wanted][:, None])
            (logprobs.sum() / sum(lengths)).backward()
        seconds = time.perf_counter() - began
        model.zero_grad()
        yield {"seconds": seconds, "tokens": sum(lengths)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "learn"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", choices=sorted(TOKENS), required=True)
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--budget", type=int, default=1024)
    args = parser.parse_args()
    gate = Gate(args.gate)
    step = 0
    gate.wait(step)
    for row in (generate if args.what == "generate" else learn)(args):
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        step += 1
        gate.wait(step)


if __name__ == "__main__":
    main()
