"""ALBEF: every task's graphs exported, its checkpoints read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.tiny_exports import Exports, Tiny, graph_cases, tiny
from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.convert import Format, load_network
from vlserve.exporter.recipe import load_recipe
from vlserve.exporter.text_cleaning import Kind, cleaning
from vlserve.runtime.decoding import CachedStep, Ids, RankedAnswers, Ranking, rank_answers
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.manifest import TextInput
from vlserve.runtime.text import Tokenizer, load_tokenizer
from vlserve.runtime.types import Backend
from vlserve.testing.eager import EagerBackend

RECIPE = load_recipe("albef", Path(__file__).parents[3] / "export")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "cat", "dog", "##s"]
VISION = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "layer_norm_eps": 1e-6}
BERT = VISION | {
    "layers": 2,
    "layer_norm_eps": 1e-12,
    "vocabulary": len(WORDS),
    "positions": 24,
    "token_types": 2,
    "first_cross_layer": 1,
    "memory_hidden": 16,
}
FIELDS: dict[str, Any] = {
    "vocabulary": WORDS,
    "max_length": 12,
    "vision_heads": 2,
    "text_heads": 2,
}
CONFIG = FIELDS | {"image": {"height": 16, "width": 24}, "vision": VISION | {"patch": 8}}
TASKS: dict[str, dict[str, Any]] = {
    "match": {"encoder": BERT, "embedding": 6},
    "embed": {"encoder": BERT, "embedding": 6},
    "answer": {
        "encoder": BERT,
        "decoder": BERT | {"layers": 1, "first_cross_layer": 0},
        "answers": ["cat", "a red ball", "dogs"],
    },
    "reason": {"encoder": BERT | {"layers": 3}, "classes": 2},
    "entail": {"encoder": BERT, "classes": 3},
    "ground": {"encoder": BERT, "embedding": 6, "grad_cam_layer": 1},
    "ground_by_cosine": {
        "task": "ground",
        "encoder": BERT,
        "embedding": 6,
        "grad_cam": "itc",
        "grad_cam_layer": 0,
    },
}
GRAPHS = {
    "match": ("image", "text", "fusion"),
    "answer": ("encoder", "step", "score"),
    "reason": ("model",),
    "entail": ("model",),
    "ground": ("model",),
    "ground_by_cosine": ("model",),
}
"""Those of embed are graphs of match."""
State = dict[str, torch.Tensor]


def of_task(name: str, **options: Any) -> Tiny:
    return tiny(RECIPE, CONFIG | {"task": name} | TASKS[name] | options)


@pytest.fixture(scope="module")
def exports() -> Exports:
    return Exports({name: of_task(name) for name in TASKS})


@graph_cases(GRAPHS)
def test_a_graph_answers_like_the_network(
    task: str, graph: str, format: Format, exports: Exports
) -> None:
    exports.models[task].assert_equal(graph, exports.graph(task, graph, format))


def test_the_graphs_of_every_task_are_exported(exports: Exports) -> None:
    assert {model.config["task"] for model in exports.models.values()} == set(RECIPE.spec.tasks)
    shapes = {
        (task, name): (plan.inputs, plan.outputs, type(plan.module))
        for task, model in exports.models.items()
        for name, plan in model.plans.items()
    }
    coverage = {shapes[task, name] for task, names in GRAPHS.items() for name in names}
    assert set(shapes.values()) == coverage


def test_answers_rank_alike_over_exported_graphs(exports: Exports, tmp_path: Path) -> None:
    model, sizes = exports.models["answer"], {"batch": 3, "text": 7}
    inputs = model.recipe.example("encoder", model.config, sizes, seed=5)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    (tmp_path / "assets").mkdir()
    interface = RECIPE.serve(model.config, tmp_path / "assets")
    answer_ids = np.array(
        json.loads((tmp_path / interface.options["answer_ids"]).read_text(encoding="utf-8"))
    )
    assert answer_ids.tolist() == [[2, 8, 3, 0, 0], [2, 5, 6, 7, 3], [2, 9, 10, 3, 0]]
    rules = Ranking(interface.options["candidates"], interface.options["first_word_twice"])

    def rank(graphs: Mapping[str, Backend]) -> RankedAnswers:
        memory = graphs["encoder"].run(arrays)
        step = CachedStep(graphs["step"], model.plans["step"].inputs, memory)

        def score(ids: Ids) -> NDArray[Any]:
            return graphs["score"].run({"answer_ids": ids, **memory})["log_prob"]

        return rank_answers(step, score, answer_ids, len(arrays["image"]), rules)

    eager = rank({name: EagerBackend(plan) for name, plan in model.plans.items()})
    ranking = rank({name: exports.graph("answer", name, "torchscript") for name in model.plans})
    np.testing.assert_array_equal(eager.answers, ranking.answers)
    np.testing.assert_array_equal(eager.best(), ranking.best())
    np.testing.assert_allclose(eager.probability, ranking.probability, atol=1e-5)
    np.testing.assert_allclose(eager.probability.sum(axis=1), 1)


def test_a_heat_map_does_not_depend_on_padding_or_neighbours() -> None:
    model = of_task("ground")
    backend = EagerBackend(model.plans["model"])
    inputs = model.recipe.example("model", model.config, {"batch": 4, "text": 9}, seed=3)
    together = backend.run({name: tensor.numpy() for name, tensor in inputs.items()})
    assert together["word_maps"].max() > 1e-4
    for item, length in enumerate(inputs["text_mask"].sum(dim=1).tolist()):
        alone = {name: x[item : item + 1].numpy() for name, x in inputs.items()}
        alone |= {name: alone[name][:, :length] for name in ("text_ids", "text_mask")}
        maps = backend.run(alone)["word_maps"][0]
        np.testing.assert_allclose(maps, together["word_maps"][item, :length], atol=1e-6)
        assert not together["word_maps"][item, length:].any()


def with_what_is_ignored(state: State) -> State:
    extra = {f"{part}_m.norm.weight": torch.rand(2) for part in ("visual_encoder", "text_proj")}
    extra |= {"idx_queue": torch.zeros(1, 4), "queue_ptr": torch.zeros(1)}
    return state | extra | {"text_encoder.embeddings.position_ids": torch.arange(24)}


def of_pretraining(state: State) -> State:
    new_state = {
        name.replace("text_encoder.", "text_encoder.bert."): x for name, x in state.items()
    }
    return new_state | {"text_encoder.cls.predictions.bias": torch.rand(len(WORDS))}


LAYOUTS: dict[str, tuple[str, Callable[[State], State]]] = {
    "retrieval": ("match", with_what_is_ignored),
    "pretraining": ("match", of_pretraining),
    "vqa": ("answer", with_what_is_ignored),
    "nlvr": ("reason", lambda state: state),
    "ve": ("entail", with_what_is_ignored),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_checkpoint_is_the_same_network(layout: str) -> None:
    task, change = LAYOUTS[layout]
    state = of_task(task, image={"height": 16, "width": 16}).network.state_dict()
    checkpoint = change({name: tensor.clone() for name, tensor in state.items()})
    config = RECIPE.complete_config(FIELDS, checkpoint, Path())
    assert config["task"] == task
    network_state = load_network(RECIPE, checkpoint, config).state_dict()
    assert network_state.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(network_state[name], tensor), name


TYPES = "text_encoder.embeddings.token_type_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("temp"), "missing temp"),
        (lambda state: state.pop(TYPES), f"missing {TYPES}"),
        (
            lambda state: state.update({"box_head.weight": torch.rand(2)}),
            "unexpected box_head.weight",
        ),
        (lambda state: state.clear(), r"missing visual_encoder\S+"),
    ],
    ids=["temperature", "blip", "another_head", "empty"],
)
def test_what_is_no_albef_checkpoint_is_refused_with_the_reason(
    change: Callable[[State], object], reason: str
) -> None:
    state = dict(of_task("match", image={"height": 16, "width": 16}).network.state_dict())
    change(state)
    with pytest.raises(CheckpointMismatch, match=f"not a albef checkpoint: {reason}"):
        load_network(RECIPE, state, RECIPE.complete_config(FIELDS, state, Path()))


def test_a_config_that_cannot_work_says_why() -> None:
    state = of_task("match", image={"height": 16, "width": 16}).network.state_dict()
    for changes, reason in (
        ({"task": "ground"}, "grad_cam_layer must be from 1 to 1"),
        ({"task": "ground", "grad_cam": "itc", "grad_cam_layer": 1}, "must be from 0 to 0"),
        ({"task": "caption"}, "task caption: albef has match, embed, ground"),
    ):
        with pytest.raises(ExportError, match=reason):
            RECIPE.complete_config(FIELDS | changes, state, Path())


@pytest.mark.parametrize("name", ["token_types", "first_cross_layer"])
def test_a_new_network_whose_encoder_cannot_work_names_the_field(name: str) -> None:
    config = CONFIG | {"task": "entail", "classes": 3, "encoder": BERT | {name: 0}}
    with pytest.raises(ExportError, match=f"encoder.{name} must be 1 or more"):
        RECIPE.build(config)


def test_there_is_nothing_to_answer_with_without_answers(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="names no answers"):
        RECIPE.serve(of_task("answer", answers=[]).config, tmp_path)


def test_what_a_task_is_told(tmp_path: Path) -> None:
    labels = {task: RECIPE.serve(of_task(task).config, tmp_path).labels for task in TASKS}
    assert labels["reason"] == ("false", "true")
    assert labels["entail"] == ("contradiction", "neutral", "entailment")
    interface = RECIPE.serve(of_task("match").config, tmp_path)
    assert interface.text is not None and interface.options == {"retrieval_score": "match_logit"}
    (tmp_path / "assets").mkdir()
    RECIPE.serve(of_task("match").config, tmp_path / "assets")
    ids = load_tokenizer(interface.text, tmp_path).ids("Red-balls, red!")
    assert ids.tolist() == [2, 6, 7, 10, 6]


LONG = " ".join(["a", "cats", "reds", "balls", "dogs", "ball"] * 12)
"""72 words, of which four in six have two pieces."""
LIMITS: dict[str, tuple[int, int | None]] = {
    "match": (30, 30),
    "embed": (30, 30),
    "ground": (30, None),
    "reason": (30, None),
    "entail": (30, None),
    "answer": (50, None),
}
"""Words and tokens that the original's evaluation of a task leaves of a text; see export/albef.py
for where that stands."""


def text_input(task: str, folder: Path, **options: Any) -> tuple[Tokenizer, TextInput]:
    """As an archive of the task turns texts into ids, whose checkpoint has 100 positions."""
    sizes = {
        part: {**value, "positions": 100} if part in ("encoder", "decoder") else value
        for part, value in TASKS[task].items()
    }
    model = tiny(RECIPE, CONFIG | {"task": task} | sizes | {"image": {"height": 16, "width": 16}})
    fields = {name: value for name, value in FIELDS.items() if name != "max_length"}
    fields |= {name: sizes[name] for name in ("answers", "grad_cam_layer") if name in sizes}
    config = RECIPE.complete_config(
        fields | {"task": task} | options, model.network.state_dict(), folder
    )
    (folder / "assets").mkdir()
    text = RECIPE.serve(config, folder / "assets").text
    assert text is not None
    return load_tokenizer(text, folder), text


def original_ids(text: str, words: int, tokens: int | None, folder: Path) -> list[int]:
    """[CLS] and the pieces, without [SEP], as the original's tokenizer writes them."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    from transformers import BertTokenizer

    bert = BertTokenizer(str(folder / "vocab.txt"))
    pieces = bert.tokenize(" ".join(text.split(" ")[:words]))
    return [int(i) for i in bert.convert_tokens_to_ids(["[CLS]", *pieces])][:tokens]


@pytest.mark.parametrize("task", LIMITS)
def test_long_texts_are_cut_as_in_the_originals_evaluation(task: str, tmp_path: Path) -> None:
    tokenizer, _ = text_input(task, tmp_path)
    words, tokens = LIMITS[task]
    for text in (LONG, "Cats, " * 40 + "a red ball!", " ".join(["red-ball"] * 40), "a cat"):
        kind: Kind = "question" if task == "answer" else "caption"
        clean_text = cleaning("albef", kind).normalize_str(text)
        expected = original_ids(clean_text, words, tokens, tmp_path)
        assert tokenizer.ids(text).tolist() == expected
    assert len(tokenizer.ids(LONG)) == (tokens or {30: 51, 50: 84}[words])


@pytest.mark.parametrize("task", LIMITS)
def test_what_passes_the_positions_is_refused_where_tokens_stay_whole(
    task: str, tmp_path: Path
) -> None:
    tokenizer, _ = text_input(task, tmp_path)
    just, over = "红" * 99, "红" * 100  # one word, and a token each
    assert len(tokenizer.ids(just)) == (LIMITS[task][1] or 100)
    if LIMITS[task][1]:
        assert len(tokenizer.ids(over)) == LIMITS[task][1]
        return
    with pytest.raises(RequestError, match="text has more than 100 tokens") as error:
        tokenizer.rows(["a cat", over])
    assert error.value.code is ErrorCode.TEXT_TOO_LONG


def test_a_config_may_cut_as_before(tmp_path: Path) -> None:
    tokenizer, text = text_input("answer", tmp_path, max_length=12, max_words=4)
    assert text.too_long == "cut"
    assert len(tokenizer.ids("红" * 100)) == 12
    assert tokenizer.ids("a cat a dog red").tolist() == [2, 5, 8, 5, 9]
