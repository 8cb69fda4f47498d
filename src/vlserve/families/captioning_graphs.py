"""Graphs of a captioning transformer: their inputs and outputs, and the plan of the step."""

from vlserve.exporter.recipe import GraphPlan
from vlserve.models.captioning import CaptionDecoder, CaptionStep, LayerSizes
from vlserve.runtime.manifest import TensorSpec


def memory_tensors(
    sizes: LayerSizes, length: int | str = "memory", levels: tuple[int, ...] = ()
) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Return what an encoder graph puts out, ``length`` long, and the step takes in."""
    front = ("batch", sizes.layers, *levels, sizes.heads, length)
    return (
        TensorSpec(name="memory_key", dtype="float32", dims=(*front, sizes.key_size)),
        TensorSpec(name="memory_value", dtype="float32", dims=(*front, sizes.value_size)),
        TensorSpec(name="memory_mask", dtype="int64", dims=("batch", length)),
    )


def step_inputs(sizes: LayerSizes, levels: tuple[int, ...] = ()) -> tuple[TensorSpec, ...]:
    token_ids = TensorSpec(name="token_ids", dtype="int64", dims=("batch", "beams", "tokens"))
    return (token_ids, *_cache(sizes, "past", "past"), *memory_tensors(sizes, levels=levels))


def step_plan(
    decoder: CaptionDecoder, sizes: LayerSizes, levels: tuple[int, ...] = ()
) -> GraphPlan:
    """Return the graph for vlserve.runtime.decoding.CachedStep."""
    words = decoder.fc.out_features
    logits = TensorSpec(name="logits", dtype="float32", dims=("batch", "beams", words))
    outputs = (logits, *_cache(sizes, "new", "tokens"))
    return GraphPlan(CaptionStep(decoder), step_inputs(sizes, levels), outputs)


def _cache(sizes: LayerSizes, name: str, axis: str) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    front = ("batch", "beams", sizes.layers, sizes.heads, axis)
    return (
        TensorSpec(name=f"{name}_ids", dtype="int64", dims=("batch", "beams", axis)),
        TensorSpec(name=f"{name}_key", dtype="float32", dims=(*front, sizes.key_size)),
        TensorSpec(name=f"{name}_value", dtype="float32", dims=(*front, sizes.value_size)),
    )
