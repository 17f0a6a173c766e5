"""Finding a method by name or import path."""

from __future__ import annotations

import difflib
import importlib

from algorithms.base import Algorithm

BUILT_IN: dict[str, str] = {
    "rlvr": "algorithms.rlvr:RLVR",
    "reward_model": "algorithms.reward_model:RewardModel",
    "ppo": "algorithms.ppo:PPO",
    "hybrid_agent": "algorithms.hybrid_agent:HybridAgent",
    "neuralese_sft": "algorithms.neuralese_sft:NeuraleseSFT",
    "answer_sft": "algorithms.answer_sft:AnswerSFT",
    "jepo": "algorithms.jepo:JEPO",
    "verifree": "algorithms.verifree:VeriFree",
    "trice": "algorithms.trice:TRICE",
    "cot_flow": "algorithms.cot_flow:CoTFlow",
    "star": "algorithms.star:STaR",
    "reverse_cot": "algorithms.reverse_cot:ReverseCoT",
    "helper": "algorithms.helper:Helper",
    "latent_flow": "algorithms.latent_flow:LatentFlow",
}
"""Names of the methods that come with Posterior. A module is imported only when its method is asked for."""


def find(name: str) -> type[Algorithm]:
    """The method class called `name`: a built-in name ("rlvr") or an import path ("my_pkg.my_method:MyMethod").

    Raises ValueError with one sentence when there is none.
    """
    path = BUILT_IN.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = (
            f"did you mean {close[0]}?"
            if close
            else f"known: {', '.join(sorted(BUILT_IN))}; or give my_pkg.my_method:MyMethod"
        )
        raise ValueError(f"no algorithm is called {name!r}; {hint}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A package missing *inside* the user's module is another fault than a wrong path, and has another mend.
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise ValueError(f"algorithm {name!r}: there is no module {error.name!r} on the import path") from error
        raise ValueError(f"algorithm {name!r}: {module_name} needs the package {error.name!r}; install it") from error
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"algorithm {name!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ValueError(f"algorithm {name!r}: {module_name} has no {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ValueError(f"algorithm {name!r}: {class_name} is not a subclass of algorithms.base.Algorithm")
    return found
