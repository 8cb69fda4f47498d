"""Graphs of a BERT that writes: their inputs and outputs, and the plans of step and score."""

from vlserve.exporter.recipe import GraphPlan
from vlserve.models.bert import BertConfig
from vlserve.models.decoder import AnswerScore, DecoderStep, TextDecoder
from vlserve.runtime.manifest import TensorSpec


def memory_tensors(
    config: BertConfig, length: int | str = "memory"
) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Return what an encoder graph puts out, ``length`` long, and the step and score graphs take
    in."""
    dims = ("batch", config.layers, config.heads, length, config.hidden // config.heads)
    return (
        TensorSpec(name="memory_key", dtype="float32", dims=dims),
        TensorSpec(name="memory_value", dtype="float32", dims=dims),
        TensorSpec(name="memory_mask", dtype="int64", dims=("batch", length)),
    )


def step_inputs(config: BertConfig) -> tuple[TensorSpec, ...]:
    token_ids = TensorSpec(name="token_ids", dtype="int64", dims=("batch", "beams", "tokens"))
    past = (_cache("past_key", config, "past"), _cache("past_value", config, "past"))
    return (token_ids, *past, *memory_tensors(config))


def step_plan(decoder: TextDecoder, config: BertConfig) -> GraphPlan:
    """Return the graph for vlserve.runtime.decoding.CachedStep."""
    logits = TensorSpec(name="logits", dtype="float32", dims=("batch", "beams", config.vocabulary))
    new = (_cache("new_key", config, "tokens"), _cache("new_value", config, "tokens"))
    return GraphPlan(DecoderStep(decoder), step_inputs(config), (logits, *new))


def score_inputs(config: BertConfig) -> tuple[TensorSpec, ...]:
    answer_ids = TensorSpec(name="answer_ids", dtype="int64", dims=("batch", "answers", "tokens"))
    return (answer_ids, *memory_tensors(config))


def score_plan(
    decoder: TextDecoder, config: BertConfig, pad_id: int, label_smoothing: float = 0.0
) -> GraphPlan:
    """Return the graph for vlserve.runtime.decoding.rank_answers."""
    score = TensorSpec(name="log_prob", dtype="float32", dims=("batch", "answers"))
    return GraphPlan(AnswerScore(decoder, pad_id, label_smoothing), score_inputs(config), (score,))


def _cache(name: str, config: BertConfig, axis: str) -> TensorSpec:
    dims = ("batch", "beams", config.layers, config.heads, axis, config.hidden // config.heads)
    return TensorSpec(name=name, dtype="float32", dims=dims)
