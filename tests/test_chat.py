"""Thought and action are told apart only by tokenizers that can spell the marks."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.chat import ChatFormat


def test_a_vocabulary_without_the_marks_knows_no_thoughts() -> None:
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chat = ChatFormat(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>"))
    prompt = chat.prompt_ids("a strange")
    assert prompt.tolist() == [1, 0]
    assert chat.thought_length(prompt, np.array([1, 2])) == (0, True)
