"""The run configuration: one typed tree, every key explained, unknown keys refused with the nearest known one.

`load` merges three sources, later ones winning: defaults written here, the YAML file, `a.b=c` words of the command line; and
remembers for every value where it came from (`posterior train CONFIG --dry-run` prints that).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

EMBEDDED = "embedded"
"""Model path that stands for the toy model inside the package."""
SCRATCH = "scratch"
"""Model path that stands for random weights."""
DEFAULT_LENGTH = 512
"""Of prompt and answer together, in tokens, where a configuration names none and the model can read as much."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Lora(Section):
    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 32.0
    """Scale: the update is alpha / rank times B A."""
    dropout: NonNegativeFloat = 0.0
    """Dropout on the adapters' input."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Module names that get adapters."""


class Scratch(Section):
    family: Literal["llama", "qwen3", "gpt2"] = "llama"
    """Architecture."""
    layers: PositiveInt = 2
    """Decoder layers."""
    width: PositiveInt = 64
    """Values of a hidden state."""
    heads: PositiveInt = 4
    """Attention heads; must divide width."""


class Thinker(Section):
    kind: Literal["gated", "mlp", "raw", "soft", "pause", "flow"] = "gated"
    """What makes a latent of a hidden state: gated (beginning near a learned pause token), mlp (CODI), raw (Coconut), soft (mixture of
    tokens), or pause (the control: one learned embedding, nothing fed back). flow moves all latents of a block at once along a learned
    velocity field (algorithm latent_flow)."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the latents' noise, in units of an embedding's root mean square."""
    stop: bool = False
    """Whether the number of latent steps is a sampled decision (at most sampling.latents)."""
    gate: float = Field(0.5, gt=0.0, lt=1.0)
    """Share of the hidden state in a latent at the start (gated; flow with endpoint)."""
    temperature: PositiveFloat = 1.0
    """Of the mixture (soft)."""
    expected_steps: PositiveFloat = 4.0
    """Latent steps before the first stop, on average at the start (stop)."""
    euler_steps: PositiveInt = 5
    """Steps from z_0 to the latents that the answer is read after (flow)."""
    trust: PositiveFloat = 1.0
    """Largest root mean square of one such step, in units of an embedding's (flow)."""
    endpoint: bool = False
    """Whether the velocity field says where to go (m - z) instead of which way (flow)."""


class Model(Section):
    path: str = EMBEDDED
    """Folder in Hugging Face format, hub id, "embedded" for the toy model inside the package, "scratch" for random weights, or a run's
    configuration (ends in .yaml; in the working directory or beside this file): the last policy of that run, trained once before."""
    scratch: Scratch = Field(default_factory=Scratch)
    """The model that path: scratch makes; its vocabulary are the environment's words."""
    thinker: Thinker | None = None
    """Let the model think in latents before it answers; a folder that has a thinker keeps its own."""
    grad: str = "exact"
    """How far gradients go back through latents: exact, recompute (the same with less memory), truncated:M (the last M steps),
    detached (a control); and with `,turn` behind it (exact,turn) only within a turn of an episode."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and arithmetic of sampler and learner (bfloat16: the learner keeps float32 master weights)."""
    max_length: PositiveInt | None = None
    """Longest sequence, prompt and answer together, in tokens (null: 512, or what the model can read if that is less)."""
    lora: Lora | None = None
    """Train low-rank adapters instead of all weights (peft); the sampler gets the merged weights."""
    trust_remote_code: bool = False
    """Allow model code from the hub to run."""


class EnvConfig(Section):
    name: str = "coding"
    """A registered name, or an import path such as my_pkg.my_env:MyEnv."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment class."""
    train_split: str | None = None
    """Which split to train on (null: the environment's first)."""
    workers: PositiveInt = 1
    """Environment worker processes."""


class Sampling(Section):
    temperature: PositiveFloat = 1.0
    """Softmax temperature while training."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus truncation; 1 keeps everything."""
    top_k: NonNegativeInt = 0
    """Keep only the k likeliest tokens; 0 keeps everything."""
    max_tokens: PositiveInt = 160
    """Longest answer, written thought included, in tokens."""
    latents: NonNegativeInt = 0
    """Latent steps before each answer or action (the most, with model.thinker.stop)."""
    latents_from: Literal["fixed", "task"] = "fixed"
    """How many: always latents, or as many as the task has written steps and one for the answer, at most latents."""


class Optimiser(Section):
    lr: PositiveFloat = 3e-4
    """Learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging coefficients."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip: PositiveFloat = 1.0
    """Largest gradient norm."""


class Train(Section):
    steps: PositiveInt = 100
    """Batches consumed in the run, at most."""
    flops: PositiveFloat | None = None
    """End after the step at which sampling, scoring and learning have cost so much (evaluation is free); null: no bound."""
    seconds: PositiveFloat | None = None
    """End after the step at which training has taken so long (evaluation and checkpoints are free); null: no bound."""
    batch_groups: PositiveInt = 8
    """Groups (tasks) a batch; times group_size traces."""
    epochs: PositiveInt = 1
    """Passes over each batch."""
    minibatches: PositiveInt = 1
    """Optimiser steps a pass."""
    token_budget: PositiveInt | None = None
    """Positions of one micro-batch (null: as many as fit in a share of the memory); memory, not the gradient, depends on it."""
    staleness: NonNegativeInt = 0
    """S: a batch of version v holds no group admitted before version v - S; 0 is synchronous."""
    optimiser: Optimiser = Field(default_factory=Optimiser)
    """Defaults for every trainable role."""
    checkpoint_every: PositiveInt = 25
    """Steps between checkpoints; one is always written at the end and on Ctrl-C."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints to keep."""
    max_bad_steps: PositiveInt = 3
    """Consecutive steps with a non-finite loss or gradient after which the run stops."""
    shuffle_rewards: bool = False
    """Control: permute rewards over the whole batch, so that nothing can be learnt from them."""


class Evaluation(Section):
    every: NonNegativeInt = 20
    """Steps between evaluations on held-out tasks (also before the first and after the last step); 0 never."""
    flops: PositiveFloat | None = None
    """Evaluate also whenever training has cost so much more, so that methods whose steps cost differently are seen at the same compute;
    null: by steps alone."""
    splits: list[str] = Field(default_factory=lambda: ["test"])
    """Held-out splits of the environment."""
    tasks: PositiveInt = 128
    """Tasks of each split."""
    samples: PositiveInt = 1
    """Answers per task."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of evaluation; 0 is greedy."""
    thoughts: NonNegativeInt = 0
    """Before the first and after the last step, draw so many written thoughts of each task and read its good answer behind them:
    log p(y*|x), and what the thoughts are worth (32 or more); 0 never."""
    anchoring: NonNegativeInt = 0
    """Of so many of those thoughts of each task, and of as many drawn with the answer in sight: how far they are written backwards
    from the answer (lexical, entropic, probabilistic, zones); 0 never. At most `thoughts`."""
    step_mark: str = Field("\n\n", min_length=1)
    """The text that ends a step of a thought, for the entropies of anchoring."""
    causal: NonNegativeInt = 0
    """After training, replace the latents of this many tasks of each split (zero, mean, noise, shuffle, transplant, truncation) and
    judge the answers again; 0 never."""

    @model_validator(mode="after")
    def _flops_of_what_is_evaluated(self) -> Self:
        if self.flops is not None and not self.every:
            raise ValueError(
                "every is 0, which means no evaluation, also none by flops; set every to a number of steps"
            )
        return self

    @model_validator(mode="after")
    def _anchoring_of_drawn_thoughts(self) -> Self:
        if self.anchoring > self.thoughts:
            raise ValueError(
                f"anchoring is measured of the thoughts that are drawn: set thoughts to {self.anchoring} or more"
            )
        return self


class Controls(Section):
    names: list[Literal["no_thought", "pause", "detached"]] = Field(default_factory=list)
    """After training, train the same configuration without: thought (no_thought), anything fed back (pause), gradients through what is
    fed back (detached)."""
    steps_factor: PositiveFloat = 2.0
    """Steps of a control, as a multiple of the run's own."""
    lr: list[PositiveFloat] = Field(default_factory=list)
    """Learning rates to try for each control, the best counts; empty for the run's own."""


class RewardSource(Section):
    path: str | None = None
    """The reward model of `reward: {model: ..}`: a run's configuration (ends in .yaml; in the working directory or beside this file),
    trained once before; a run that trained one, whose best checkpoint counts; or a folder that holds one."""
    sees: Literal["answer", "trace"] = "answer"
    """What it reads: prompt and answer, or the thought as well."""
    bound: NonNegativeFloat = 0.0
    """Standard deviations of its members that are taken off their mean: a lower bound, against over-optimism."""
    fresh: NonNegativeInt = 0
    """Answers of the newest policy that monitor.rater grades every `fresh_every` steps, at most a batch's, for the reward model to learn; 0
    for none."""
    fresh_every: PositiveInt = 10
    """Steps from one round of fresh labels to the next."""
    fresh_steps: PositiveInt = 30
    """Updates of the reward model on each round."""
    fresh_lr: PositiveFloat = 3e-4
    """Learning rate of these updates."""


class Monitor(Section):
    """Of a learned reward, at every evaluation (`actors.monitor`)."""

    rater: str | None = None
    """Component of the environment's grade that is a fresh rater's word; the alarm listens to it, never to the grade itself."""
    answers: PositiveInt = 64
    """Answers that are graded anew at each evaluation, at most as many as are played."""
    z: PositiveFloat = 3.5
    """Standard errors by which the raters' mean must have fallen for the alarm."""
    stop: bool = False
    """End the run at the evaluation at which the alarm sounds."""
    probes: list[str] | None = None
    """Sentences to the judge that are put behind answers, to see whether they sway it; null for a few of our own. Those that the
    vocabulary cannot spell are left out."""
    kl_budget: PositiveFloat | None = None
    """End the run at the first evaluation whose KL from the start is above this, in nats an answer."""


class Resources(Section):
    address: str = "local"
    """Ray cluster: "local" starts one for the run, "auto" joins a running one, or host:port; RAY_ADDRESS goes before it."""
    samplers: PositiveInt = 1
    """Sampler actors (each one vLLM engine)."""
    sampler_cpus: NonNegativeFloat = 1
    """CPUs reserved for each sampler."""
    sampler_gpus: NonNegativeFloat = 0
    """GPUs reserved for each sampler; a fraction shares one with the learner."""
    sampler_threads: PositiveInt = 1
    """Arithmetic threads of each sampler (CPU only)."""
    learners: PositiveInt = 1
    """Data-parallel learner workers."""
    learner_cpus: NonNegativeFloat = 1
    """CPUs reserved for each learner."""
    learner_gpus: NonNegativeFloat = 0
    """GPUs reserved for each learner."""
    learner_threads: PositiveInt = 1
    """Arithmetic threads of each learner (CPU only)."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Shard weights, gradients and optimiser over the learners (needs GPUs; for models without a head that score no batches)."""
    object_store_mb: PositiveInt = 512
    """Shared memory of a Ray that is started for the run (weights and batches pass through it), in MiB."""
    max_restarts: NonNegativeInt = 3
    """How often a dead actor or learner is brought back before the run stops with the cause."""


class Log(Section):
    traces_every: NonNegativeInt = 10
    """Steps between dumps of sampled traces for the report; 0 never."""
    trace_groups: PositiveInt = 4
    """Groups in each dump."""
    wandb: bool = False
    """Log to Weights & Biases too (extra: wandb)."""
    mlflow: bool = False
    """Log to MLflow too (extra: mlflow)."""
    watchdog_seconds: NonNegativeFloat = 60.0
    """When nothing has moved for so long, a line names the stage and what it waits for, and again after twice as long; 0 never."""
    watchdog_stop_seconds: NonNegativeFloat = 0.0
    """When nothing has moved for so long, the run is stopped with that sentence (`posterior resume` continues it); 0 never."""


class RunConfig(Section):
    name: str = "run"
    """Name of the run, part of its folder's name."""
    seed: NonNegativeInt = 0
    """Seed of everything random in the run."""
    model: Model = Field(default_factory=Model)
    """The policy."""
    env: EnvConfig = Field(default_factory=EnvConfig)
    """What it is asked."""
    algorithm: dict[str, Any] = Field(default_factory=lambda: {"name": "rlvr"})
    """How it learns: `name` and the options of that method."""
    reward: dict[str, Any] = Field(default_factory=lambda: {"env": 1.0})
    """Weights of the parts of the reward: env, the environment's; model, that of `reward_model`. What is not named counts nothing."""
    reward_model: RewardSource = Field(default_factory=RewardSource)
    """The learned part of the reward."""
    monitor: Monitor = Field(default_factory=Monitor)
    """Whether a learned reward is being gamed."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How traces are sampled."""
    train: Train = Field(default_factory=Train)
    """Batches, steps and the optimiser."""
    eval: Evaluation = Field(default_factory=Evaluation)
    """Held-out evaluation inside the run."""
    controls: Controls = Field(default_factory=Controls)
    """What a latent thinker is compared with."""
    resources: Resources = Field(default_factory=Resources)
    """What runs where."""
    log: Log = Field(default_factory=Log)
    """What is written."""
