"""Rendering prompts and turns as token ids, and telling thought from action in what a model emitted.

Chats are rendered append-only: the ids of a later turn are the template's own words for it, taken once by difference, so
that what was sampled is never re-tokenised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


class ChatFormat:
    """One tokenizer's way of writing prompts, turns and thoughts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        fast = getattr(tokenizer, "backend_tokenizer", None)
        # the library below transformers, a fifth of the time a call; it is stateful where a tokenizer pads or cuts
        self._fast = fast if fast is not None and not fast.padding and not fast.truncation else None
        self._open = self._mark(THINK_OPEN)
        self._close = self._mark(THINK_CLOSE)

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text as it stands; special: with what the tokenizer puts around a text."""
        if self._fast is not None:
            return self._fast.encode(text, add_special_tokens=special).ids
        return self.tokenizer.encode(text, add_special_tokens=special)

    def prompt_ids(self, prompt: str | Sequence[dict[str, str]]) -> np.ndarray:
        """int32[P] ids of a prompt: raw text as it stands, messages through the chat template with the answer opened.

        A tokenizer without a template gets the messages' contents, one a line.
        """
        if isinstance(prompt, str):
            return np.array(self.ids(prompt, special=True), np.int32)
        if not self.has_template:
            return np.array(self.ids("\n".join(m["content"] for m in prompt) + "\n", special=True), np.int32)
        ids = self.tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return np.array(ids, np.int32)

    def turn_ids(self, observation: str, ended: bool) -> np.ndarray:
        """int32[n] ids between an action and the next one: the rest of the action's ending, the observation, the opening.

        ended: whether the action already ends with the end-of-sequence token (it does not when it was cut by length).
        """
        if not self.has_template:
            return np.array(self.ids("\n" + observation + "\n"), np.int32)
        opening = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "MARK"}]
        whole = self._render([*opening, {"role": "user", "content": observation}], True)
        tail = whole[whole.rindex("MARK") + len("MARK") :]
        end = self.tokenizer.eos_token or ""
        if ended and tail.startswith(end):
            tail = tail[len(end) :]
        return np.array(self.ids(tail), np.int32)

    def opens(self, prompt: np.ndarray) -> bool:
        """Whether a prompt's ids end with the opening mark, so that an emission begins inside the thought."""
        return bool(self._open) and _ends_with(prompt[-32:].tolist(), self._open)

    def emission_ids(self, steps: Sequence[str], action: str, marked: bool = False, opened: bool = False) -> np.ndarray:
        """int32[n] ids of a given good emission: written reasoning, the answer or action, the end.

        marked: put the reasoning between thinking marks, where the vocabulary has them, so that `thought_length` finds it.
        opened: the prompt wrote the first of them.
        """
        words = [*steps, action]
        if marked and self._open:
            words = [*([] if opened else [THINK_OPEN]), *steps, THINK_CLOSE, action]
        return np.array([*self.ids(" ".join(words)), self.tokenizer.eos_token_id], np.int32)

    def thought_length(self, prompt: np.ndarray, emitted: np.ndarray) -> tuple[int, bool]:
        """How many leading emitted tokens are thought, its closing mark included; and whether the thought was closed.

        Thought begins if the prompt ends with the opening mark or the emission starts with it. Without either, everything
        is action: (0, True). A thought that never closed leaves no action: (n, False).
        """
        ids = emitted.tolist()
        if not self._open or not (self.opens(prompt) or self._starts_open(ids)):
            return 0, True
        at = _find(ids, self._close)
        if at >= 0:
            return at + len(self._close), True
        return self._search_text(ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids without special tokens."""
        return self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text of each token on its own, special tokens included, for display."""
        return self.tokenizer.batch_decode([[int(i)] for i in ids])

    def _mark(self, text: str) -> tuple[int, ...]:
        """The ids that spell a mark; none where the vocabulary cannot (an unknown token would match unrelated text)."""
        ids = tuple(self.ids(text))
        return () if self.tokenizer.unk_token_id in ids else ids

    def _render(self, messages: list[dict[str, str]], opened: bool) -> str:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False)

    def _starts_open(self, ids: list[int]) -> bool:
        if tuple(ids[: len(self._open)]) == self._open:
            return True
        if len(self._open) == 1:
            return False
        return self.tokenizer.decode(ids[:16]).lstrip().startswith(THINK_OPEN)

    def _search_text(self, ids: list[int]) -> tuple[int, bool]:
        """For tokenizers that spell the mark with several tokens, which may merge with their neighbours."""
        if len(self._close) == 1 or THINK_CLOSE not in self.tokenizer.decode(ids):
            return len(ids), False
        low, high = 1, len(ids)
        while low < high:  # the shortest beginning that holds the mark
            middle = (low + high) // 2
            if THINK_CLOSE in self.tokenizer.decode(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        return low, True


def _find(ids: list[int], mark: tuple[int, ...]) -> int:
    if len(mark) == 1:
        return ids.index(mark[0]) if mark[0] in ids else -1
    return next((i for i in range(len(ids) - len(mark) + 1) if tuple(ids[i : i + len(mark)]) == mark), -1)


def _ends_with(ids: list[int], mark: tuple[int, ...]) -> bool:
    """Whether ids end with the mark, blank tokens after it allowed (templates write a line break)."""
    return any(
        tuple(ids[len(ids) - back - len(mark) : len(ids) - back]) == mark
        for back in range(3)
        if len(ids) >= back + len(mark)
    )
