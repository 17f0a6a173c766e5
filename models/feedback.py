"""From a hidden state to the next latent: the feedback modules, the decision to stop, and noise.

    raw     h                                                       Coconut (Hao et al. 2024)
    mlp     LayerNorm(W2 gelu(W1 h))                                CODI (Shen et al. 2025)
    gated   rms_E norm((1-g) norm(pause) + g norm(W2 gelu(W1 h)))   the default: from a learned pause token on, as large as an embedding
    soft    softmax(logits(h) / temperature) E                      soft thinking (Zhang et al. 2025)
    pause   one learned embedding, whatever h is                    a control: time to compute, nothing fed back (Goyal et al. 2024)
    flow    moved from a pause token by a velocity field            `models.velocity`: all of a block at once

h is the final hidden state after the last norm; E the input embeddings and rms_E their root mean square. What is fed back far above
the size of an embedding drowns the residual stream, and one that starts far from anything the model has read makes the first steps noise.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

FILE, WEIGHTS = "thinker.json", "thinker.safetensors"
CLOCK = 8
"""Sines and cosines of a flow's time."""


@dataclass(frozen=True)
class ThinkerConfig:
    """kind: see the module. noise: standard deviation of the latents' noise, in units of rms_E. stop: whether the number of steps is a
    sampled decision.
    gate: share of the hidden state at the start (gated). temperature: of the mixture (soft). expected_steps: 1 / the probability to
    stop at the start. euler_steps: T (flow). trust: largest root mean square of one Euler step, in units of rms_E (flow). endpoint:
    whether the field says where to go instead of which way (flow)."""

    kind: Literal["gated", "mlp", "raw", "soft", "pause", "flow"] = "gated"
    noise: float = 0.0
    stop: bool = False
    gate: float = 0.5
    temperature: float = 1.0
    expected_steps: float = 4.0
    euler_steps: int = 5
    trust: float = 1.0
    endpoint: bool = False


class Thinker(nn.Module):
    """Feedback and decisions of a latent thinker; its parameters are trained and saved beside the language model's.

    lm: the language model it thinks with. It is not registered as a submodule: its parameters are its own.
    """

    rms: Tensor

    def __init__(self, config: ThinkerConfig, lm: Any) -> None:
        super().__init__()
        self.config = config
        self._lm = (lm,)
        weight = lm.get_input_embeddings().weight.detach()
        width = lm.config.get_text_config().hidden_size
        if weight.shape[1] != width and config.kind != "soft":
            raise ValueError(
                f"the model's embeddings have {weight.shape[1]} values and its hidden states {width}: a latent cannot be fed back"
            )
        self.register_buffer("rms", weight.float().square().mean().sqrt())
        if config.kind in ("gated", "mlp"):
            self.up = nn.Linear(width, width)
            self.down = nn.Linear(width, width)
        if config.kind == "mlp":
            self.norm = nn.LayerNorm(width)
        if config.kind in ("gated", "pause", "flow"):
            self.pause = nn.Parameter(torch.randn(width) * self.rms)
        if config.kind == "gated" or (config.kind == "flow" and config.endpoint):
            self.gate = nn.Parameter(torch.full((width,), config.gate).logit())
        if config.kind == "flow":
            if config.stop:
                raise ValueError(
                    "a flow makes all latents of a block at once: their number cannot be a sampled decision"
                )
            self.clock = nn.Linear(CLOCK, width)
            if config.endpoint:
                self.up, self.down = nn.Linear(2 * width, width), nn.Linear(width, width)
                # at the start the steps are the Jacobi iteration of a gated chain (see `models.velocity`)
                for still in (self.clock.weight, self.clock.bias, self.up.weight[:, :width]):
                    nn.init.zeros_(still)
            else:
                self.velocity = nn.Linear(2 * width, width)
                nn.init.zeros_(self.velocity.weight)  # z stays at the pause token until something is learnt
                nn.init.zeros_(self.velocity.bias)
        if config.stop:
            self.stop = nn.Linear(width, 1)
            nn.init.zeros_(self.stop.weight)
            nn.init.constant_(self.stop.bias, -float(torch.log(torch.tensor(max(config.expected_steps - 1, 1e-3)))))
        self.to(weight.dtype)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """[N, D] hidden states -> [N, D] latents (their mean, where there is noise)."""
        kind = self.config.kind
        if kind == "raw":
            return hidden_ND
        if kind == "pause":
            return self.pause.expand_as(hidden_ND)
        if kind == "soft":
            lm = self._lm[0]
            mixture = (lm.get_output_embeddings()(hidden_ND) / self.config.temperature).softmax(-1)
            return mixture.to(hidden_ND.dtype) @ lm.get_input_embeddings().weight.to(hidden_ND.dtype)
        made = self.down(nn.functional.gelu(self.up(hidden_ND)))
        return self.norm(made) if kind == "mlp" else self._gated(made)

    def _gated(self, made_ND: Tensor) -> Tensor:
        gate = self.gate.sigmoid()
        return self.rms * _unit((1 - gate) * _unit(self.pause) + gate * _unit(made_ND))

    def noisy(self, latent_ND: Tensor, epsilon_ND: Tensor) -> Tensor:
        """mu + sigma * epsilon. epsilon: standard normal, kept by its seed, so that the same noise meets new parameters."""
        return latent_ND + self.config.noise * self.rms.to(latent_ND.dtype) * epsilon_ND.to(latent_ND.dtype)

    def clocked(self, z_LD: Tensor, t_L: Tensor | float) -> Tensor:
        """[L, D] what the velocity field reads at latents z: they and the time in [0, 1), of each or of all (flow)."""
        t_L1 = torch.as_tensor(t_L, dtype=z_LD.dtype, device=z_LD.device).reshape(-1, 1)
        turn = torch.pi * t_L1 * torch.arange(1, CLOCK // 2 + 1, device=z_LD.device)
        return z_LD + self.rms.to(z_LD.dtype) * self.clock(torch.cat([turn.sin(), turn.cos()], 1).to(z_LD.dtype))

    def displacement(self, hidden_L2D: Tensor, z_LD: Tensor) -> Tensor:
        """[L, D] one Euler step of the velocity field at z, from the hidden states there and one position before: at
        most `trust` rms_E long (flow)."""
        if self.config.endpoint:
            step = self._gated(self.down(nn.functional.gelu(self.up(hidden_L2D)))) - z_LD
        else:
            step = self.rms.to(z_LD.dtype) * self.velocity(hidden_L2D)
        return self.within(step, self.config.trust)

    def ball(self, z_LD: Tensor) -> Tensor:
        """z, not larger than an embedding."""
        return self.within(z_LD, 1.0)

    def within(self, x_ND: Tensor, radius: float) -> Tensor:
        """x with a root mean square of at most radius * rms_E, each row for itself."""
        size = (x_ND.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return x_ND * (radius * self.rms.to(x_ND.dtype) / size).clamp(max=1.0)

    def stop_logit(self, hidden_ND: Tensor) -> Tensor:
        """float32[N]: logit of the probability to stop after the step that made this hidden state."""
        return self.stop(hidden_ND)[:, 0].float()

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        (folder / FILE).write_text(json.dumps(asdict(self.config), indent=2))
        save_file(self.state_dict(), folder / WEIGHTS)


def has_thinker(path: str) -> bool:
    return (Path(path) / FILE).is_file()


def thinker_config(path: str) -> ThinkerConfig:
    return ThinkerConfig(**json.loads((Path(path) / FILE).read_text()))


def load_thinker(path: str, lm: Any) -> Thinker:
    from safetensors.torch import load_file

    thinker = Thinker(thinker_config(path), lm)
    thinker.load_state_dict(load_file(Path(path) / WEIGHTS))
    return thinker


def epsilon_of(seed: int, position_N: Any, width: int) -> Any:
    """float32[N, width] standard normal noise of a trace's latents: a function of (seed, position) alone."""
    import numpy as np

    rows = [
        np.random.Generator(np.random.Philox(key=[seed, int(p)])).standard_normal(width, np.float32) for p in position_N
    ]
    return np.stack(rows) if rows else np.zeros((0, width), np.float32)


def _unit(x_ND: Tensor) -> Tensor:
    """Root mean square 1."""
    return x_ND * torch.rsqrt(x_ND.square().mean(-1, keepdim=True) + 1e-6)
