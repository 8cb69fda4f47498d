"""Outputs of golden cases that only training has: losses, gradients, queues, momentum weights."""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from support.golden_cases import Case, assert_close, cases, golden_folder
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.exporter.convert import load_network
from vlserve.exporter.recipe import Recipe

ONLY_TRAINING = (
    "loss_*",
    "*_loss",
    "grad.*",
    "scst_*",
    "neg_weights_*",  # by which hard negatives are drawn
    "*_queue_after",
    "queue_ptr_after",
    "*_weight_after",  # momentum copies after a step
    "*_embeddings_after",
)
"""Patterns of their names."""
INFERENCE = ("answer_loss", "rank_neg_loss")
"""Called like a loss, but part of an answer."""
COVERED: set[str] = set()
"""Cases whose training some test has asked for."""


def inference_outputs(case: Case) -> list[str]:
    """Names of the outputs that an implementation has without training."""
    return [name for name in case.config["outputs"] if not only_training(name)]


def training_outputs(case: Case) -> set[str]:
    return {name for name in case.config["outputs"] if only_training(name)}


def only_training(name: str) -> bool:
    return name not in INFERENCE and any(fnmatch(name, pattern) for pattern in ONLY_TRAINING)


def training_cases(family: str, *sources: str) -> list[Case]:
    """Cases of a family with outputs of training, whose source class or file is one of these."""
    own_cases = [
        case
        for case in cases(family)
        if training_outputs(case)
        and {case.config["source"]["class"], case.config["source"]["file"]} & set(sources)
    ]
    COVERED.update(map(str, own_cases))
    return own_cases


def not_yet_covered() -> list[str]:
    """``family/case: names`` for every case of the folder whose training no test has asked for."""
    lines = []
    for file in sorted(golden_folder().glob("*/*/config.json")):
        case = Case(file.parent.parent.name, file.parent)
        names = sorted(training_outputs(case))
        if names and str(case) not in COVERED:
            lines.append(f"{case}: {', '.join(names)}")
    return lines


def network_to_train(
    recipe: Recipe, state: Mapping[str, Tensor], config: Mapping[str, Any], case: Case
) -> Any:
    """The case's network in eval mode, as the originals ran it, with gradients; in double
    precision, so that where large numbers cancel only the reference's rounding is left."""
    complete = recipe.complete_config(config, state, case.folder)
    return load_network(recipe, state, complete).double().requires_grad_(True)


def state_of(case: Case) -> dict[str, Tensor]:
    return dict(read_checkpoint(case.folder / "state_dict.safetensors"))


def tensors_of(case: Case) -> dict[str, Tensor]:
    """The case's inputs, numbers in double precision."""
    tensors = {name: torch.from_numpy(x) for name, x in case.arrays("inputs").items()}
    return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}


def gradients(
    case: Case,
    network: nn.Module,
    loss: Tensor,
    ours: Mapping[str, str] | None = None,
    kind: str = "grad.",
) -> dict[str, Tensor]:
    """Gradients of ``loss`` that the case asks for, under its names; ``ours``: the originals' names
    of parameters that are called otherwise here."""
    names = [name for name in training_outputs(case) if name.startswith(kind)]
    own = {
        name: (ours or {}).get(name.removeprefix(kind), name.removeprefix(kind)) for name in names
    }
    parameters = dict(network.named_parameters(remove_duplicate=False))
    results = torch.autograd.grad(
        loss, [parameters[name] for name in own.values()], retain_graph=True
    )
    return dict(zip(names, results, strict=True))


def assert_training_outputs(case: Case, outputs: Mapping[str, Tensor]) -> None:
    """All of them, and no others."""
    reference = case.arrays("outputs")
    assert set(outputs) == training_outputs(case)
    for name, tensor in outputs.items():
        array, reference_array = tensor.detach().numpy(), reference[name]
        if reference_array.dtype.kind == "i":
            np.testing.assert_array_equal(array, reference_array, err_msg=f"{case}: {name}")
        else:
            assert_close(array.reshape(reference_array.shape), reference_array, f"{case}: {name}")
