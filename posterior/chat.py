"""`posterior chat`: talk to a checkpoint in the terminal, and see its thoughts apart from its answers."""

from __future__ import annotations

import sys
from typing import Any

from models.chat import ChatFormat
from models.loading import load_role, load_tokenizer, stop_ids
from posterior.prepare import model_path
from posterior.targets import open_target

DIM, PLAIN = "\033[2m", "\033[0m"


class Talker:
    """One conversation with a model, in torch (one reply at a time needs no engine)."""

    def __init__(self, path: str, max_tokens: int, temperature: float, seed: int = 0) -> None:
        import torch

        self.model = load_role(path).eval()
        self.tokenizer = load_tokenizer(path)
        self.chat = ChatFormat(self.tokenizer)
        self.stop = list(stop_ids(path, self.tokenizer))
        self.max_tokens, self.temperature = max_tokens, temperature
        self.ids: list[int] = []
        torch.manual_seed(seed)

    def reply(self, text: str) -> tuple[str, str]:
        """(thought, answer) to one message; the conversation so far is kept."""
        import torch

        if not self.ids:
            self.ids = self.chat.prompt_ids([{"role": "user", "content": text}]).tolist()
        else:
            self.ids += self.chat.turn_ids(text, self.ids[-1] in self.stop).tolist()
        prompt = torch.tensor([self.ids])
        with torch.no_grad():
            out = self.model.base.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=self.max_tokens,
                do_sample=self.temperature > 0,
                **({"temperature": self.temperature} if self.temperature > 0 else {}),
                eos_token_id=self.stop,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        emitted = out[0, len(self.ids) :].numpy()
        thought, _ = self.chat.thought_length(prompt[0].numpy(), emitted)
        self.ids = out[0].tolist()
        return self.chat.decode(emitted[:thought]).strip(), self.chat.decode(emitted[thought:]).strip()


def chat(target: str) -> dict[str, Any]:
    """Read messages from standard input until its end; an empty line starts a new conversation."""
    config, what = open_target(target)
    path = model_path(config)

    def fresh() -> Talker:
        return Talker(path, config.sampling.max_tokens, config.sampling.temperature, config.seed)

    talker = fresh()
    print(f"talking to {what}; an empty line starts over, Ctrl-D ends", file=sys.stderr)
    turns = 0
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return {"target": what, "turns": turns}
        if not line.strip():
            talker = fresh()
            continue
        thought, answer = talker.reply(line.strip())
        turns += 1
        dim, plain = (DIM, PLAIN) if sys.stdout.isatty() else ("", "")
        if thought:
            print(f"{dim}{thought}{plain}")
        print(answer, flush=True)
