"""The shipped toy model: loads unchanged, small, with a chat template and marks that survive a round trip."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.coding.procedural import Program, Stream, tasks
from models.chat import ChatFormat
from posterior import embedded
from posterior.embedded import pretrain

MARKS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<think>", "</think>", "<latent>")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded.path())


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32).eval()


def careful(number: int) -> list[tuple[str, str]]:
    texts = pretrain.documents(11, "test", 1.0)
    return list(islice(texts, number))


def test_files_are_small_and_labelled() -> None:
    files = [file for file in embedded.path().iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    card = (embedded.path() / "README.md").read_text()
    assert "toy" in card
    assert "python -m posterior.embedded.pretrain" in card


def test_it_is_a_small_qwen3_with_tied_embeddings(model: Any) -> None:
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.config.tie_word_embeddings
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 1_900_000
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_marks_are_single_tokens(tokenizer: Any, model: Any) -> None:
    for mark in MARKS:
        assert len(tokenizer.encode(mark, add_special_tokens=False)) == 1, mark
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<|pad|>"
    config = json.loads((embedded.path() / "generation_config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_token_id == model.config.eos_token_id
    assert config["pad_token_id"] == tokenizer.pad_token_id == model.config.pad_token_id
    assert len(tokenizer) <= model.config.vocab_size


def test_chat_template_round_trip(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Sort a."}, {"role": "assistant", "content": "<think>1.</think>def f(a):"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == "<|user|>Sort a.<|assistant|><think>1.</think>def f(a):<|end|>"
    opened = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(opened)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert tokenizer.decode(ids) == whole
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Sort a.<think>1.</think>def f(a):"


@pytest.mark.parametrize(
    "text", ["Grüße, 12345!\n\n\tif x:  # ok", "def f(a):\n    return [x for x in a if x > 3]", "名前 🙂"]
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_prompts_and_answers_are_short(tokenizer: Any, split: str) -> None:
    chat = ChatFormat(tokenizer)
    for task in islice(tasks(split), 150):
        assert len(chat.prompt_ids(task.prompt)) <= 60
        assert task.steps is not None
        written = "<think>" + "\n".join(task.steps) + f"</think>{task.answer}<|end|>"
        emitted = tokenizer.encode(written, add_special_tokens=False)
        assert len(emitted) <= 100
        thought, closed = chat.thought_length(chat.prompt_ids(task.prompt), torch.tensor(emitted).numpy())
        assert closed
        assert chat.decode(emitted[thought:]) == task.answer


def test_pretraining_text_is_from_train_programs_only() -> None:
    texts = list(islice(pretrain.documents(0, "train", 0.5), 300))
    shares = [answer.startswith("<think>1. ") for _, answer in texts]
    assert 0.4 < sum(shares) / 300 < 0.6
    for index in range(300):
        program, _ = Stream(0, ("list", "number", "string"), (1, 2, 3)).program(index)
        assert isinstance(program, Program)
        assert program.split == "train"


def test_careful_answers_are_far_likelier_than_chance(model: Any, tokenizer: Any) -> None:
    """Given that it thinks carefully, the shipped model knows how to go on."""
    rows = [pretrain.encode(tokenizer, document) for document in careful(32)]
    opening = tokenizer.encode("<think>1.", add_special_tokens=False)
    with torch.no_grad():
        loss = pretrain.batch_loss(model, [(ids, start + len(opening)) for ids, start in rows])
    assert loss.item() < 0.1


def test_sampled_answers_have_the_expected_form(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    prompts = [question for question, _ in careful(3)]
    for prompt in prompts:
        answer = pretrain.sample(model, tokenizer, prompt)
        assert answer.startswith("<think>")
        assert "</think>def f(" in answer


def test_pretraining_is_deterministic_and_its_folder_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    arguments = ["--steps", "2", "1", "--rows", "4", "--documents", "200"]
    for name in ("one", "two"):
        pretrain.main(["--out", str(tmp_path / name), *arguments])
    for file in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "one").dtype == torch.bfloat16
