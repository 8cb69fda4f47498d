"""A checkpoint's tensors, made fit for an objective: parts that it needs not are left out, and
heads that the checkpoint lacks begin at random.

Each function takes tensors by name and gives them back with the names of what is new.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
Fitted = tuple[dict[str, Tensor], tuple[str, ...]]
PARTS = ("text_encoder", "text_decoder", "vision_proj", "text_proj", "itm_head", "cls_head", "temp")
"""Of BLIP's and ALBEF's networks, beside the ViT, which every task needs."""
CLASSIFIER = "cls_head."
CLASSES: Mapping[str, int] = {"reason": 2, "entail": 3}
DECODER = "text_decoder."
LAYER = re.compile(r"^text_encoder\.encoder\.layer\.(\d+)\.")


def of_parts(state: State, parts: Sequence[str]) -> dict[str, Tensor]:
    """Without the PARTS that are not among ``parts``."""
    others = tuple(part for part in PARTS if part not in parts)
    prefixes = tuple(f"{part}." for part in others)
    return {
        name: x for name, x in state.items() if name not in others and not name.startswith(prefixes)
    }


def is_pretrained(state: State) -> bool:
    """Whether a checkpoint is one of BLIP's pretraining, which has the parts of every task."""
    both = (f"{part}." for part in ("itm_head", "text_decoder"))
    return all(any(name.startswith(prefix) for name in state) for prefix in both)


def with_classifier(state: State, classes: int) -> Fitted:
    """With a classifier, where there is none."""
    if any(name.startswith(CLASSIFIER) for name in state):
        return dict(state), ()
    hidden = _hidden(state)
    if hidden is None:
        return dict(state), ()
    head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    return with_new(state, {f"{CLASSIFIER}{name}": x for name, x in head.state_dict().items()})


def with_layers_for_two_images(state: State) -> State:
    """With each layer that sees the image twice, one behind the other, for the two images of a
    sentence: as ALBEF's Pretrain_nlvr.py and NLVR.py begin with what was pretrained on one. What
    has a classifier of its own, or such pairs already, stays as it is."""
    tensors = {
        name.replace("text_encoder.bert.", "text_encoder.", 1): x for name, x in state.items()
    }
    cross_layers = sorted(
        {int(match[1]) for name in tensors if (match := LAYER.match(name)) and "cross" in name}
    )
    if not cross_layers or any(name.startswith(CLASSIFIER) for name in tensors):
        return state
    if _in_pairs(tensors, cross_layers):
        return state
    first, result = cross_layers[0], {}
    for name, tensor in tensors.items():
        layer = LAYER.match(name)
        if layer is None or int(layer[1]) < first:
            result[name] = tensor
            continue
        place = first + 2 * (int(layer[1]) - first)
        for number in (place, place + 1):
            result[f"text_encoder.encoder.layer.{number}.{name[layer.end() :]}"] = tensor
    return result


def _in_pairs(tensors: State, cross_layers: Sequence[int]) -> bool:
    """Whether layers two by two have the same keys and values for the images, as the original
    shares them."""

    def looks(layer: int) -> list[Tensor]:
        own = f"text_encoder.encoder.layer.{layer}.crossattention.self."
        return [tensors[f"{own}{part}.weight"] for part in ("key", "value")]

    if len(cross_layers) % 2:
        return False
    return all(
        torch.equal(tensor, other)
        for first, second in zip(cross_layers[::2], cross_layers[1::2], strict=True)
        for tensor, other in zip(looks(first), looks(second), strict=True)
    )


def with_decoder(state: State) -> Fitted:
    """With a decoder made of the encoder's embeddings and of its layers that see the image, where
    there is none: as ALBEF's VQA.py begins. Its head is pretraining's, or new."""
    tensors = {
        name.replace("text_encoder.bert.", "text_encoder.", 1): x for name, x in state.items()
    }
    cross_layers = [
        int(match[1]) for name in tensors if (match := LAYER.match(name)) and "cross" in name
    ]
    hidden = _hidden(tensors)
    if any(name.startswith(DECODER) for name in tensors) or not cross_layers or hidden is None:
        return dict(state), ()
    first, decoder = min(cross_layers), {}
    for name, tensor in tensors.items():
        if layer := LAYER.match(name):
            if int(layer[1]) >= first:
                own = f"{DECODER}bert.encoder.layer.{int(layer[1]) - first}."
                decoder[own + name[layer.end() :]] = tensor.clone()
        elif name.startswith("text_encoder.cls."):
            decoder[f"{DECODER}{name.removeprefix('text_encoder.')}"] = tensor.clone()
        elif name.startswith("text_encoder."):
            decoder[f"{DECODER}bert.{name.removeprefix('text_encoder.')}"] = tensor.clone()
    whole = tensors | decoder
    if any(name.startswith(f"{DECODER}cls.") for name in decoder):
        return whole, ()
    words = len(tensors["text_encoder.embeddings.word_embeddings.weight"])
    return with_new(whole, new_word_head(f"{DECODER}cls.predictions.", hidden, words))


def new_word_head(prefix: str, hidden: int, words: int) -> dict[str, Tensor]:
    """BERT's transform and bias in front of the word embeddings."""
    head = nn.ModuleDict(
        {
            "transform": nn.ModuleDict(
                {"dense": nn.Linear(hidden, hidden), "LayerNorm": nn.LayerNorm(hidden)}
            )
        }
    )
    state = {f"{prefix}{name}": x for name, x in head.state_dict().items()}
    return state | {f"{prefix}bias": next(iter(state.values())).new_zeros(words)}


def with_new(state: State, head: State) -> Fitted:
    """With a new head's tensors."""
    return {**state, **{name: x.detach() for name, x in head.items()}}, tuple(head)


def _hidden(state: State) -> int | None:
    """The width of the text's states; None where there are no words."""
    words = (x for name, x in state.items() if name.endswith("word_embeddings.weight"))
    embedding = next(words, None)
    return None if embedding is None else int(embedding.shape[1])
