"""Loading and saving models and tokenizers in Hugging Face format, with or without LoRA adapters and heads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.chain import EXACT, Gradient
from models.feedback import Thinker, has_thinker, load_thinker
from models.packing import enable, pack, packed_hidden

log = logging.getLogger("posterior.models")

THINKER = "thinker."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class ModelError(ValueError):
    """A model cannot be loaded; the message is one sentence that says what to mend."""


def check_model_path(path: str) -> None:
    """Raise `ModelError` if a local folder is named that holds no model. Hub ids (no such folder, form a/b) pass."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model folder {path} has no config.json; save the model with save_pretrained() into it")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise ModelError(
                f"model folder {path} has no weights (*.safetensors); save the model with save_pretrained() into it"
            )
        for file in sorted(folder.glob("*.safetensors")):
            check_weights(file)
    elif folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ModelError(
            f'there is no model folder {path}; give a folder in Hugging Face format, a hub id or "embedded"'
        )


def check_weights(file: Path) -> None:
    """Raise `ModelError` if a safetensors file is cut short or is none. Reads its header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"the weights {file} are damaged ({_first_line(error)}); copy or save them again") from error


def load_config(path: str, trust_remote_code: bool = False) -> Any:
    """The architecture of a model folder or hub id. Raises ModelError if config.json is broken or of an unknown kind."""
    from transformers import AutoConfig

    check_model_path(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many types for a broken file
        raise ModelError(f"config.json of the model {path} cannot be used: {_first_line(error)}") from error


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id; a missing pad token becomes the end token."""
    from transformers import AutoTokenizer

    check_model_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"no tokenizer can be loaded from {path}: {_first_line(error)}") from error
    if not tokenizer.encode("a b", add_special_tokens=False):  # transformers makes an empty one where files are missing
        raise ModelError(
            f"the tokenizer of {path} knows no text; save it with tokenizer.save_pretrained() into the model's folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_ids(path: str, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a generation: the tokenizer's end token and those of generation_config.json."""
    ids = {tokenizer.eos_token_id}
    config = Path(path) / "generation_config.json"
    if config.is_file():
        try:
            listed = json.loads(config.read_text()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{config} is not a JSON object ({error}); save the model again or delete it") from error
        ids.update(listed if isinstance(listed, list) else [listed])
    return tuple(sorted(i for i in ids if i is not None))


class RoleModel(nn.Module):
    """A causal language model with an optional head of one or more outputs a position.

    lm: the Hugging Face model. head: None, or a linear layer [D -> outputs] initialised at zero, so that a fresh value is 0.
    packs: whether the model reads packed rows (`models.packing`); if not, rows are padded. thinker: what makes latents of hidden
    states, for models that think in them. grad: how far gradients go back through latents.
    """

    def __init__(
        self,
        lm: Any,
        head: nn.Linear | None = None,
        packs: bool = False,
        thinker: Thinker | None = None,
        grad: Gradient = EXACT,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.head = head
        self.packs = packs
        self.thinker = thinker
        self.grad = grad

    @property
    def base(self) -> Any:
        """The language model without adapters' wrapper."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm

    def hidden(self, token_BT: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """Final hidden states, after the last norm, of right-padded rows: ([N, D] of the batch's distinct positions, int64[B, T] of
        where each padded position stands among them)."""
        if not self.packs:
            # causal attention makes a mask needless
            hidden_BTD = self.base.base_model(input_ids=token_BT, use_cache=False).last_hidden_state
            at_BT = torch.arange(token_BT.numel(), device=token_BT.device).view(token_BT.shape)
            return hidden_BTD.flatten(0, 1), at_BT
        packing = pack(token_BT.cpu().numpy(), length_B.cpu().numpy(), token_BT.device)
        return packed_hidden(self.base, packing), packing.at_BT

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] logits of selected hidden states."""
        return self.base.get_output_embeddings()(hidden_ND)

    def value(self, hidden_BTD: Tensor) -> Tensor:
        """float32[B, T, outputs] of the head."""
        if self.head is None:
            raise RuntimeError("this role has no value head")
        return self.head(hidden_BTD.to(self.head.weight.dtype)).float()


def load_role(
    path: str,
    *,
    dtype: str = "float32",
    head: str = "lm",
    outputs: int = 1,
    lora: dict[str, Any] | None = None,
    grad: str = "exact",
    trust_remote_code: bool = False,
) -> RoleModel:
    """Load one role's model.

    A folder with a thinker gives a model that thinks in latents. grad: how far gradients go through them, see `models.chain`.

    head: any but "lm" adds the linear head with so many outputs (weights from head.safetensors in the folder if present). lora: keyword
    arguments rank, alpha, dropout, targets. Raises ModelError with one sentence.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    check_model_path(path)
    try:
        lm: Any = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"no causal language model can be loaded from {path}: {_first_line(error)}") from error
    packs = enable(lm)
    if not packs:
        log.warning("%s cannot read packed rows (its attention is its own): rows are padded, which is slower", path)
    mind = load_thinker(path, lm) if has_thinker(path) else None
    if mind is not None and not packs:
        raise ModelError(f"{path} cannot think in latents: its attention is its own")
    linear = None
    if head != "lm":
        linear = nn.Linear(lm.config.hidden_size, outputs, dtype=torch.float32)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        saved = Path(path) / "head.safetensors"
        if saved.is_file():
            from safetensors.torch import load_file

            weights = load_file(saved)
            found, wanted = ({name: tuple(t.shape) for name, t in w.items()} for w in (weights, linear.state_dict()))
            if found != wanted:
                raise ModelError(
                    f"the head {saved} has the shapes {found}, where {wanted} are asked for; start from a model whose head gives "
                    f"{outputs} output{'s' * (outputs > 1)}, or from one without a head"
                )
            linear.load_state_dict(weights)
        elif head == "scalar" and classifier_padding(path) is not None:
            with torch.no_grad():
                linear.weight.copy_(_classifier_head(path, trust_remote_code))
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        lm = get_peft_model(
            lm,
            LoraConfig(
                r=lora["rank"],
                lora_alpha=lora["alpha"],
                lora_dropout=lora["dropout"],
                target_modules=lora["targets"],
                task_type="CAUSAL_LM",
            ),
        )
    return RoleModel(lm, linear, packs, mind, Gradient.parse(grad))


def classifier_padding(path: str) -> int | None:
    """The padding token of a folder that holds a sequence classifier, such as TRL's RewardTrainer saves; None of any other folder.

    Such a model reads a sequence up to its last token that is no padding (-1 where it has none). Raises ModelError if it has several
    labels.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    config = load_config(path)
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return None
    if config.num_labels != 1:
        raise ModelError(f"{path} is a classifier of {config.num_labels} labels; a reward model has one (num_labels=1)")
    padding = config.get_text_config().pad_token_id
    return -1 if padding is None else int(padding)


def _classifier_head(path: str, trust_remote_code: bool) -> Tensor:
    """float32[1, D]: what makes a sequence classifier's score of a hidden state. Raises ModelError if it is no plain linear layer."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=trust_remote_code)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError(f"{path} scores by another head than one linear layer called score, which is not known here")
    return head.weight.detach().float()


def merged_weights(model: RoleModel) -> dict[str, np.ndarray]:
    """The language model's weights as the sampler wants them: Hugging Face names, float32 arrays, adapters merged in.

    A thinker's are among them, their names begin with `THINKER`. Tied weights appear once. Sharded weights are gathered (a collective:
    every rank must call it).
    """
    lm = model.lm
    adapted = hasattr(lm, "merge_adapter")
    if adapted:
        lm.merge_adapter()
    try:
        out: dict[str, np.ndarray] = {}
        for name, parameter in model.base.named_parameters():
            if "lora_" in name:
                continue
            tensor = parameter.detach()
            if hasattr(tensor, "full_tensor"):
                tensor = tensor.full_tensor()
            # copy: the array must not change under the sampler when the optimiser takes its next step
            out[name.replace(".base_layer.", ".")] = tensor.float().cpu().numpy().copy()
        if model.thinker is not None:
            for name, tensor in model.thinker.state_dict().items():
                out[THINKER + name] = tensor.float().cpu().numpy().copy()
        return out
    finally:
        if adapted:
            lm.unmerge_adapter()


@torch.no_grad()
def put_weights(model: RoleModel, arrays: dict[str, np.ndarray]) -> None:
    """Write `merged_weights` of a model of the same build into this one, in place. Raises KeyError naming a weight that is missing."""
    named = [(name, tensor) for name, tensor in model.base.named_parameters()]
    if model.thinker is not None:
        named += [(THINKER + name, tensor) for name, tensor in model.thinker.state_dict().items()]
    for name, tensor in named:
        tensor.copy_(torch.from_numpy(np.array(arrays[name], copy=False)))


def latent_id(tokenizer: Any) -> int:
    """The id written at latent positions, which is never embedded: that of `<latent>`, or of padding where the vocabulary has none."""
    found = tokenizer.convert_tokens_to_ids("<latent>")
    return int(tokenizer.pad_token_id if found is None or found == tokenizer.unk_token_id else found)


def save_role(model: RoleModel, folder: Path, tokenizer: Any | None) -> None:
    """Write a role in Hugging Face format (adapters merged; the head beside it as head.safetensors)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    base = model.base
    dtype = next(base.parameters()).dtype
    arrays = {name: array for name, array in merged_weights(model).items() if not name.startswith(THINKER)}
    state = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    base.config.save_pretrained(folder)
    if base.generation_config is not None:
        base.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if model.head is not None:
        save_file(model.head.state_dict(), folder / "head.safetensors")
    if model.thinker is not None:
        model.thinker.save(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
