"""Shared fixtures: small random models in Hugging Face format, and one Ray for the whole session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>", "<latent>"]


def write_tiny_model(folder: Path, *, tied: bool = True, seed: int = 0, layers: int = 2, width: int = 64) -> Path:
    """A random Qwen3 with a byte-level tokenizer, in Hugging Face format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["def f(x): return x + 1", "the list of numbers"],
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=tied,
            max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            initializer_range=0.1,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model(tied=True, seed=0) -> folder of a random model, written once for each choice."""
    made: dict[str, Path] = {}

    def make(**choice: object) -> Path:
        key = repr(sorted(choice.items()))
        if key not in made:
            made[key] = write_tiny_model(tmp_path_factory.mktemp("model"), **choice)  # type: ignore[arg-type]
        return made[key]

    return make


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A private two-CPU Ray."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def no_run_survives() -> Iterator[None]:
    """A test that fails leaves no run behind."""
    yield
    if "runs" in sys.modules:
        sys.modules["runs"].end_all()


BY_LENGTH = '''
"""A dense reward that a random model varies in, so that training moves the weights, behind the real grader and sandbox."""
import asyncio
from dataclasses import replace
from itertools import islice
from pathlib import Path

from envs.base import Grade
from envs.coding.env import CodingEnv

HOLD = Path(__file__).with_name("hold")

class ByLength(CodingEnv):
    def __init__(self):
        super().__init__(performance=False)
    def splits(self):
        return ("train", "test")
    def tasks(self, split):
        return [replace(task, prompt=f"{split} {i}") for i, task in enumerate(islice(super().tasks(split), 50))]
    async def grade(self, task, text):
        while HOLD.exists():  # a grader that hangs, for as long as a test wants
            await asyncio.sleep(0.1)
        solved = await super().grade(task, f"```python\\n{task.answer}\\n# {text!r}\\n```")
        return Grade(value=solved.value * (text.count("e") / 10 + len(text) / 1000))
'''


@pytest.fixture(scope="session")
def whole(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in folder/run; the folder also holds its configuration and the environment."""
    from runs import config, result, start, write

    folder = tmp_path_factory.mktemp("whole")
    (folder / "reward_length.py").write_text(BY_LENGTH)
    path = write(folder, config(tiny_model(), env={"name": "reward_length:ByLength"}))
    done = result(start("train", str(path), "--out", str(folder / "run"), cwd=folder))
    assert done["status"] == "finished"
    assert done["gap"]["max"] < 1e-4
    return folder
