"""Models and an environment for speed comparisons: how long answers are is a property of the model, so that every trainer
meets the same lengths without any option of its own.

The model is a Qwen3 of random weights whose next word is a Markov chain by construction: the embedding of a word says which
class it belongs to, the output layer likes words of the same class, and the end token has a fixed probability in each class.

    w1: the end token never comes, every answer has exactly `max_tokens` tokens
    w2: about 80 % of the answers end with probability 1/32 at each word, the others with 1/224: heavy-tailed, mean about 70
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

from envs.base import Grade, SingleTurnEnv, Task

WORDS = 1021
PROMPT_WORDS = 16
GROUPS, GROUP_SIZE = 8, 8
TOKENS = {"w1": 64, "w2": 512}
"""Longest answer."""
SIZES = {"3M": {"width": 256, "layers": 4}, "31M": {"width": 640, "layers": 6}}
END = {"w1": {"short": 1e-12, "long": 1e-12}, "w2": {"short": 1 / 32, "long": 1 / 224}}
"""Probability of the end token after a word of each class."""
LONG = 0.18
"""Share of the words, and so of the answers, that belong to the long class."""
STRENGTH = 30.0
"""Logit by which the words of the other class are disliked."""


def write_model(folder: Path, workload: str, size: str = "3M", seed: int = 0) -> Path:
    """Write the model of a workload ("w1", "w2") in Hugging Face format; returns the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(WORDS))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    width, layers = SIZES[size]["width"], SIZES[size]["layers"]
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 128,
            head_dim=64,
            tie_word_embeddings=False,
            max_position_embeddings=1024,
            initializer_range=0.002,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        _make_chain(model, END[workload])
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _make_chain(model: object, end: dict[str, float]) -> None:
    """Write the class of every word into the first three coordinates: short, long, and prompt words that are neither."""
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight  # type: ignore[attr-defined]
    width = embedding.shape[1]
    long = range(3, 3 + round(LONG * WORDS))
    short = range(3 + len(long), 3 + WORDS)
    embedding.mul_(0.1)
    head.mul_(0.1)
    # after the last norm a lone coordinate is about sqrt(width)
    scale = STRENGTH / math.sqrt(width)
    embedding[:, 2] = 1.0
    embedding[:, :2] = 0.0
    embedding[list(short), :3] = embedding.new_tensor([1.0, 0.0, 0.0])
    embedding[list(long), :3] = embedding.new_tensor([0.0, 1.0, 0.0])
    head[:, :3] = 0.0
    head[list(short), 1] = -scale
    head[list(long), 0] = -scale
    head[:3, :3] = -scale
    for coordinate, words, p in ((0, short, end["short"]), (1, long, end["long"])):
        # softmax: e^a / (e^a + n) = p for the end token among n words at logit 0
        head[1, coordinate] = math.log(p / (1 - p) * len(words)) / math.sqrt(width)


class Words(SingleTurnEnv):
    """Prompts that end in no class; the reward is the share of words that end in 7, so that it always varies.

    gate: folder of a `Gate` that the grader waits at before each batch of `batch` answers; None never waits.
    """

    def __init__(self, gate: str | None = None, batch: int = GROUPS * GROUP_SIZE) -> None:
        self._gate = None if gate is None else Gate(Path(gate))
        self._batch = batch
        self._graded = 0

    def tasks(self, split: str) -> Iterable[Task]:
        return [Task(id=f"{split}/{i}", prompt=prompt(i)) for i in range(256)]

    def grade(self, task: Task, text: str) -> Grade:
        if self._gate is not None:
            self._gate.wait(self._graded // self._batch)
        self._graded += 1
        return Grade(value=reward(text))


def prompt(i: int) -> str:
    """`PROMPT_WORDS` words; the last is not in the vocabulary and so belongs to no class."""
    return " ".join([*(f"w{(31 * i + 7 * j) % WORDS}" for j in range(PROMPT_WORDS - 1)), "?"])


def reward(text: str) -> float:
    words = text.split()
    return sum(word.endswith("7") for word in words) / max(1, len(words))


class Gate:
    """Lets several trainers live side by side and take turns: each waits here, idle, until steps are allowed to it.

    A folder with two small files: `allowed`, written by the driver, and `waiting`, written by the trainer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def allow(self, steps: int) -> None:
        """The driver: steps 0 .. steps - 1 may pass."""
        (self.folder / "waiting").unlink(missing_ok=True)
        _write(self.folder / "allowed", str(steps))

    def waits(self) -> bool:
        """The driver: whether the trainer stands at the gate."""
        return (self.folder / "waiting").exists()

    def wait(self, step: int) -> None:
        """The trainer: come back once `step` is allowed."""
        while step >= int((self.folder / "allowed").read_text()):
            if not self.waits():
                _write(self.folder / "waiting", str(step))
            time.sleep(0.1)


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)
