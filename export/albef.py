"""ALBEF: match, embed and retrieve, answer, reason over two images, entail, ground.

    image (batch, 3, height, width) -> ViT -> image_states (batch, patches, hidden)
    text (batch, text) -> BERT layers below the fusion layer -> text_states, which look at no image
    fusion = the layers from there on, with cross-attention to the image states

    match    cosine of both unit vectors; a head on fusion's first state: match or not
    answer   a decoder reads the fused question and ranks given answers
    reason   two images, which fusion's layers look at in turn: is the sentence true of them?
    entail   contradiction, neutral or entailment
    ground   Grad-CAM of the match, or of the cosine: where in the image the text is

Li et al., Align before Fuse (arXiv:2107.07651), github.com/salesforce/ALBEF.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.exporter.text_cleaning import Kind, clean_first
from vlserve.exporter.wordpiece import wordpiece_input
from vlserve.families import vision_text as parts
from vlserve.families.albef import (
    MAX_WORDS,
    AlbefConfig,
    AlbefNetwork,
    ClassifierGraph,
    FusionGraph,
    QuestionGraph,
    TextGraph,
    ground_plan,
)
from vlserve.families.config_file import parse_config
from vlserve.families.decoder_graphs import (
    memory_tensors,
    score_inputs,
    score_plan,
    step_inputs,
    step_plan,
)
from vlserve.families.examples import example_inputs
from vlserve.models.decoder import drop_second_names
from vlserve.models.keys import check_keys, is_ignored
from vlserve.runtime.manifest import TensorSpec
from vlserve.training.finetune.plan import VisionTextPlan

FAMILY: Final = "albef"
ATOL = 1e-4
"""Full-size logits, of the order of 10, differ by 1e-5 after 12 layers of sums."""
_RETRIEVAL = ("visual_encoder", "text_encoder", "vision_proj", "text_proj", "itm_head", "temp")
PARTS: Mapping[str, tuple[str, ...]] = {
    "match": _RETRIEVAL,
    "embed": _RETRIEVAL,
    "ground": _RETRIEVAL,
    "answer": ("visual_encoder", "text_encoder", "text_decoder"),
    "reason": ("visual_encoder", "text_encoder", "cls_head"),
    "entail": ("visual_encoder", "text_encoder", "cls_head"),
}
IGNORED = (
    # momentum copies, for training
    r"(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj|cls_head)_m\..+",
    r"(image|text|idx)_queue|queue_ptr",  # negatives from earlier training batches
    r"text_encoder\.cls\..+",  # predicts masked words, in pretraining
    r".+\.position_ids",  # 0, 1, 2, …
)
"""Keys of checkpoints that no task needs."""
LABELS = {
    "reason": ("false", "true"),
    "entail": ("contradiction", "neutral", "entailment"),
}
"""In the order of the classifier's rows."""
IMAGES = 2
"""That a sentence of the task reason is about."""
RETRIEVAL_TASKS = ("match", "embed")
RETRIEVAL_TOKENS = 30
WORDS_OF = {"answer": 50}
"""How the original's evaluations cut texts: words first (max_words in dataset/: caption_dataset.py,
grounding_dataset.py, nlvr_dataset.py, ve_dataset.py; a question in vqa_dataset.py, split test), and
then, in Retrieval.py alone, tokens. Grounding.py, VQA.py, VE.py, NLVR.py leave the tokens whole."""


class AlbefRecipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY,
        tasks=tuple(PARTS),
        atol=ATOL,
        reads=("ALBEF.pth and its fine-tuned ones (salesforce/ALBEF)",),
        reads_image_settings=True,
        golden=(
            "albef",
            "keys/albef_pretrain",
            "keys/albef_retrieval",
            "keys/albef_vqa",
            "keys/albef_nlvr",
            "keys/albef_ve",
        ),
    )

    @property
    def finetuning(self) -> VisionTextPlan:
        return VisionTextPlan(
            family="albef",
            objectives=("retrieve", "answer", "entail", "reason", "pretrain"),
            parts=PARTS,
            start="[CLS]",
            smoothing=0.0,
            tokenizer=lambda config: parts.tokenizer_of(parse(config), "$A", extra_tokens=()),
        )

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        tensors = own_names(state)
        fields = {"task": shown_task(tensors), **config}
        full_config = parts.complete(fields, tensors, folder, FAMILY, PARTS)
        retrieval = full_config["task"] in RETRIEVAL_TASKS
        positions = full_config["encoder"]["positions"]
        full_config.setdefault("max_length", RETRIEVAL_TOKENS if retrieval else positions)
        full_config.setdefault("max_words", WORDS_OF.get(full_config["task"], MAX_WORDS))
        first = "text_encoder.encoder.layer.0.crossattention.self.key.weight"
        types = "text_encoder.embeddings.token_type_embeddings.weight"
        encoder = full_config["encoder"]
        check_keys(
            FAMILY,
            missing=[] if encoder["token_types"] else [types],
            unexpected=[] if encoder["first_cross_layer"] else [first],
        )
        return parse(full_config).model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return AlbefNetwork(parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return parts.fit_positions(own_names(state), parse(config))

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = parse(config)
        tokenizer = parts.tokenizer_of(settings, "[CLS] $A", extra_tokens=())
        options: dict[str, Any] = {}
        if settings.task == "match":
            options["retrieval_score"] = "match_logit"
        if settings.task == "answer":
            options = parts.ranking_options(settings, tokenizer, "[CLS]", assets)
            options["first_word_twice"] = True
        # the original cleans what is asked and said of an image, but not its answers
        kind: Kind = "question" if settings.task == "answer" else "caption"
        clean_first(tokenizer, FAMILY, kind, settings.max_words)
        retrieval = settings.task in RETRIEVAL_TASKS
        whole = not retrieval and settings.max_length == settings.encoder.positions
        text = wordpiece_input(
            *(tokenizer, settings.max_length, assets, settings.text_cleaning),
            too_long="refuse" if whole else "cut",
        )
        labels = LABELS.get(settings.task, settings.answers)
        return Served(
            task=settings.task, image=settings.image, text=text, labels=labels, options=options
        )

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, AlbefNetwork)
        settings = parse(config)
        inputs, outputs = graph_inputs(settings), graph_outputs(settings)
        if settings.task == "answer":
            assert settings.decoder is not None
            decoder, pad_id = network.text_decoder, settings.vocabulary.index("[PAD]")
            encoder = GraphPlan(QuestionGraph(network), inputs["encoder"], outputs["encoder"])
            return {
                "encoder": encoder,
                "step": step_plan(decoder, settings.decoder),
                "score": score_plan(decoder, settings.decoder, pad_id),
            }
        if settings.task == "ground":
            return {"model": ground_plan(network, settings, inputs["model"], outputs["model"])}
        modules: dict[str, nn.Module] = {}
        if settings.task in ("match", "embed"):
            modules = {"image": parts.ImageGraph(network), "text": TextGraph(network)}
        if settings.task == "match":
            modules["fusion"] = FusionGraph(network, settings.encoder.first_cross_layer)
        if settings.task in ("reason", "entail"):
            modules["model"] = ClassifierGraph(network)
        return {
            name: GraphPlan(module, inputs[name], outputs[name]) for name, module in modules.items()
        }

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = parse(config)
        words, pad_id = len(settings.vocabulary), settings.vocabulary.index("[PAD]")
        inputs = graph_inputs(settings)[graph]
        return example_inputs(inputs, sizes, seed, words, pad_id, padded=("answer_ids",))


def graph_inputs(config: AlbefConfig) -> dict[str, tuple[TensorSpec, ...]]:
    """The inputs of each graph of the config's task."""
    image, text = parts.image_input(config), parts.text_inputs()
    if config.task in ("match", "embed"):
        inputs: dict[str, tuple[TensorSpec, ...]] = {"image": (image,), "text": text}
        if config.task == "match":
            states, _ = graph_outputs(config)["text"]
            inputs["fusion"] = (parts.image_outputs(config)[0], states, text[1])
        return inputs
    if config.task == "answer":
        assert config.decoder is not None
        return {
            "encoder": (image, *text),
            "step": step_inputs(config.decoder),
            "score": score_inputs(config.decoder),
        }
    if config.task == "reason":
        dims = ("batch", IMAGES, *image.dims[1:])
        image = TensorSpec(name="image", dtype="float32", dims=dims)
    return {"model": (image, *text)}


def graph_outputs(config: AlbefConfig) -> dict[str, tuple[TensorSpec, ...]]:
    """The outputs of each graph of the config's task, but of the decoder's."""

    def floats(name: str, *dims: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", dims=("batch", *dims))

    if config.task in ("match", "embed"):
        text_states = floats("text_states", "text", config.encoder.hidden)
        return {
            "image": parts.image_outputs(config),
            "text": (text_states, parts.embedding_output("text_embedding", config)),
            "fusion": (floats("match_logits", 2),),
        }
    if config.task == "answer":
        assert config.decoder is not None
        return {"encoder": memory_tensors(config.decoder, "text")}
    if config.task == "ground":
        if config.grad_cam == "itm":
            maps = floats("word_maps", "text", *config.grid)
            return {"model": (floats("match_logits", 2), maps)}
        return {"model": (floats("similarity", 1), floats("map", *config.grid))}
    return {"model": (floats("logits", config.classes),)}


def parse(config: Mapping[str, Any]) -> AlbefConfig:
    return parse_config(AlbefConfig, config, FAMILY)


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the ignored keys, the decoder's second names, and pretraining's ``bert.``."""
    tensors = {
        name.replace("text_encoder.bert.", "text_encoder.", 1): tensor
        for name, tensor in state.items()
        if not is_ignored(name, IGNORED)
    }
    drop_second_names(tensors, "text_decoder.")
    return tensors


def shown_task(state: Mapping[str, Tensor]) -> str:
    """What the checkpoint was trained for."""
    if any(name.startswith("text_decoder.") for name in state):
        return "answer"
    classifier = state.get("cls_head.2.weight")
    if classifier is None:
        return "match"
    return "reason" if classifier.shape[0] == len(LABELS["reason"]) else "entail"


RECIPE = AlbefRecipe()
