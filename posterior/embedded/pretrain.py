"""Pre-trains the embedded toy model on text generated from procedural training tasks.

    python -m posterior.embedded.pretrain --out DIR

The text pairs questions with thoughts of mixed quality. A careful thought names every step and translates it to its
expression, and the code follows it. Sloppy thoughts (hasty, rough or guessing) mostly end in code for a nearby wrong
program. Training has two phases: mostly careful text, from which the model learns the language, then the mixture it is
meant to sample from, in which careful thoughts are a minority. Reinforcement learning then has something to find.

Only programs of the train split are used, so tasks of "test" and "unseen" stay new to the model.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from envs.coding.operations import sentence
from envs.coding.procedural import FAMILIES, Program, Stream, mutants, reasoning

PAD, END, USER, ASSISTANT, LATENT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<latent>"
OPEN, CLOSE = "<think>", "</think>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}<|end|>"
    "{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Code idioms are one piece, so that merges can make each a single token; the rest is words, numbers, marks and blanks.
PIECES = (
    r"def f\([ans]\):|\n    return|\n    [ans] =|\[x for x in a if| for x in a\]|''\.join\(c for c in s|"
    r" ?[A-Za-z]+| ?\d{1,2}| ?[^\sA-Za-z\d]+|\s+"
)
VOCABULARY = 800
WIDTH, LAYERS, INNER, HEADS, KV_HEADS, HEAD_SIZE, POSITIONS = 128, 5, 352, 4, 2, 32, 1024
CAREFUL_EARLY, CAREFUL_LATE = 0.75, 0.27
"""Share of careful thoughts in the first and the second phase."""
TAIL = 0.06
"""Learning rate at the change of phases, as a share of its peak."""
SLOPPY_RIGHT = 0.08
"""Share of sloppy thoughts whose code is right all the same."""


def question(program: Program, rng: Random) -> str:
    """The program asked for in English."""
    return sentence(program.family, [step.ask(rng) for step in program.steps], rng)


def careful_answer(program: Program) -> str:
    """Thought and code of a careful thinker."""
    return f"{OPEN}{chr(10).join(reasoning(program.steps))}{CLOSE}{program.source}"


def sloppy_answer(program: Program, rng: Random) -> str:
    """Thought and code of a thinker who skips, swaps or mistakes steps, or does not think at all."""
    wrong = [mutant for mutant in mutants(program, rng) if mutant.steps]
    written = program if rng.random() < SLOPPY_RIGHT else rng.choice(wrong)
    names = [str(step) for step in written.steps]
    thought = rng.choice(("Easy.", f"Roughly: {', '.join(names)}", f"I guess {' and '.join(names)}"))
    return f"{OPEN}{thought}{CLOSE}{written.source}"


def documents(seed: int, split: str, careful: float) -> Iterator[tuple[str, str]]:
    """Endless pairs of question and answer about programs of `split`, with the given share of careful answers."""
    stream = Stream(seed, FAMILIES, (1, 2, 3), split)
    index = 0
    while True:
        program, rng = stream.program(index)
        assert isinstance(program, Program)
        index += 1
        answer = careful_answer(program) if rng.random() < careful else sloppy_answer(program, rng)
        yield question(program, rng), answer


def make_tokenizer(texts: Iterator[tuple[str, str]], number: int) -> Any:
    """A byte-level BPE tokenizer trained on `number` documents, with the marks and the chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    marks = [PAD, END, USER, ASSISTANT, LATENT, OPEN, CLOSE]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = (part for _ in range(number) for part in next(texts))
    core.train_from_iterator((part.replace(OPEN, "").replace(CLOSE, "\n") for part in parts), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD)
    # The marks of a thought are text like any other (as in Qwen3), so that decoding keeps them.
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in (OPEN, CLOSE)])
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, LATENT]})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = POSITIONS
    return tokenizer


def make_model(tokenizer: Any) -> Any:
    """The untrained model, float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def encode(tokenizer: Any, document: tuple[str, str]) -> tuple[list[int], int]:
    """Ids of a document and the length of its question, from where the loss counts."""
    asked, answer = document
    context = tokenizer.encode(f"{USER}{asked}{ASSISTANT}", add_special_tokens=False)
    return context + tokenizer.encode(f"{answer}{END}", add_special_tokens=False), len(context)


def batch_loss(model: Any, rows: list[tuple[list[int], int]]) -> Tensor:
    """Mean cross-entropy in nats of the answers' tokens; rows are padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    token_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    target_BT = torch.full((len(rows), longest), -100)
    for b, (ids, start) in enumerate(rows):
        token_BT[b, : len(ids)] = torch.tensor(ids)
        target_BT[b, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    hidden_BTD = model.model(input_ids=token_BT, use_cache=False).last_hidden_state
    chosen_BT = target_BT >= 0
    return torch.nn.functional.cross_entropy(model.lm_head(hidden_BTD[chosen_BT]), target_BT[chosen_BT])


def batches(tokenizer: Any, texts: Iterator[tuple[str, str]], rows: int) -> Iterator[list[tuple[list[int], int]]]:
    """Batches of `rows` documents of similar length, in random order."""
    rng = Random(0)
    while True:
        pool = sorted((encode(tokenizer, next(texts)) for _ in range(16 * rows)), key=lambda row: len(row[0]))
        groups = [pool[i : i + rows] for i in range(0, len(pool), rows)]
        rng.shuffle(groups)
        yield from groups


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iteration (Jordan et al., 2024), in float32, for matrices.

    torch.optim.Muon iterates in bfloat16, which is slow on a CPU without bfloat16 arithmetic.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.mul_(group["momentum"]).add_(p.grad)
                update = self.orthogonal(p.grad + group["momentum"] * average)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))  # as large as AdamW's updates

    @staticmethod
    def orthogonal(x: Tensor) -> Tensor:
        """x with its singular values moved near 1."""
        tall = x.shape[0] > x.shape[1]
        x = (x.T if tall else x) / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
        return x.T if tall else x


def make_optimisers(model: Any, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [Muon(matrices, lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def train(model: Any, tokenizer: Any, seed: int, steps: tuple[int, int], rows: int, lr: float) -> None:
    """Both phases, with `steps` in each.

    The rate warms up, falls along a cosine to TAIL of its peak, and in the second phase on to 0 in a line: shares of
    thoughts move at so low a rate, while what the first phase learnt about careful ones stays.
    """
    phases = [
        batches(tokenizer, documents(seed, "train", CAREFUL_EARLY), rows),
        batches(tokenizer, documents(seed + 1, "train", CAREFUL_LATE), rows),
    ]
    first, second = steps
    optimisers = make_optimisers(model, lr)
    began, tokens, average = time.monotonic(), 0, 0.0
    for step in range(first + second):
        late = step >= first
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / first)))
        rate = TAIL * (first + second - step) / second if late else TAIL + (1 - TAIL) * cosine
        batch = next(phases[late])
        loss = batch_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * rate * min(1.0, (step + 1) / 50)
            optimiser.step()
            optimiser.zero_grad()
        tokens += sum(len(ids) for ids, _ in batch)
        average = loss.item() if step == 0 else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 49 or step == first + second - 1:
            spent = time.monotonic() - began
            print(f"step {step + 1}  loss {average:.3f}  {tokens / spent:.0f} tokens/s  {spent:.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(model: Any, tokenizer: Any, number: int = 512) -> float:
    """Mean loss on documents about test programs, in the proportions of the second phase."""
    texts = documents(0, "test", CAREFUL_LATE)
    rows = [encode(tokenizer, next(texts)) for _ in range(number)]
    return sum(batch_loss(model, rows[i : i + 64]).item() for i in range(0, number, 64)) * 64 / number


def sample(model: Any, tokenizer: Any, prompt: str, start: str = "") -> str:
    """One answer sampled at temperature 1, continuing `start`."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([tokenizer.encode(text + start, add_special_tokens=False)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=128)
    return start + tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


CARD = """# The embedded toy model

A toy: a Qwen3 of {parameters:,} parameters that has read nothing but generated questions about small Python functions,
with thoughts and answers of mixed quality (most of its thoughts are sloppy and most of its answers wrong, on purpose).
It exists so that training can be shown and tested in minutes on two cores. It is of no other use.

Made by `python -m posterior.embedded.pretrain --out DIR {options}`. Loss on documents about held-out programs:
{loss:.3f} nats a token.

A turn reads `<|user|>question<|assistant|><think>thought</think>code<|end|>`. `<latent>` is reserved for latent thoughts.
"""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pre-train the embedded toy model on generated text.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model in Hugging Face format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=2, default=(1150, 200), help="steps of the two phases")
    parser.add_argument("--rows", type=int, default=32, help="documents a batch")
    parser.add_argument("--lr", type=float, default=6e-3, help="largest learning rate")
    parser.add_argument("--documents", type=int, default=4000, help="documents that the tokenizer is trained on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(documents(args.seed, "train", 0.5), args.documents)
    model = make_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, args.seed, tuple(args.steps), args.rows, args.lr)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    model.float()
    loss = held_out_loss(model, tokenizer)
    steps = " ".join(map(str, args.steps))
    options = f"--seed {args.seed} --steps {steps} --rows {args.rows} --lr {args.lr} --documents {args.documents}"
    (args.out / "README.md").write_text(CARD.format(parameters=parameters, options=options, loss=loss))
    print(f"held-out loss {loss:.4f}")
    program, rng = Stream(args.seed, FAMILIES, (2,), "test").program(0)
    assert isinstance(program, Program)
    prompt = question(program, rng)
    print(f"{prompt}\n{sample(model, tokenizer, prompt)}")


if __name__ == "__main__":
    main()
