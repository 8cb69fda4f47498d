"""Answers by the network itself: eager, one request at a time, without padding, cache or batch.

Written apart from handlers/, which they are compared with.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from support.questions import Look, Question
from vlserve.exporter.export import Trained
from vlserve.exporter.parity import run_eager
from vlserve.exporter.recipe import GraphPlan, Served
from vlserve.runtime.decoding import BeamSearch, Hypothesis, beam_search
from vlserve.runtime.image import decode
from vlserve.runtime.text import load_tokenizer
from vlserve.runtime.types import Arrays

Answer = dict[str, Any]
TOP = 5


@dataclass(frozen=True)
class Eager:
    """A trained network. ``root`` holds the assets that its recipe writes."""

    plans: dict[str, GraphPlan]
    served: Served
    root: Path

    def run(self, graph: str, inputs: Arrays) -> Arrays:
        """Of ``inputs`` the graph takes what it has a name for."""
        plan = self.plans[graph]
        tensors = {
            t.name: torch.from_numpy(inputs[t.name]) for t in plan.inputs if t.name in inputs
        }
        return run_eager(plan, tensors)

    def answer(self, question: Question) -> Answer:
        inputs = self.text(question) | self.looks(question)
        return ANSWERS[self.served.task](self, question, inputs)

    def text(self, question: Question) -> Arrays:
        if question.text is None or self.served.text is None:
            return {}
        ids = load_tokenizer(self.served.text, self.root).ids(question.text)
        ids = ids if len(ids) else np.array([self.served.text.pad_id])
        return {
            "text_ids": ids[None],
            "text_mask": np.ones((1, len(ids)), dtype=np.int64),
            "text_length": np.array([len(ids)]),
        }

    def looks(self, question: Question) -> Arrays:
        """Of a pair, both on an axis after the batch; what is shorter of two is padded."""
        arrays_of_looks = [self.look(look) for look in question.looks]
        if len(arrays_of_looks) < 2:
            return arrays_of_looks[0] if arrays_of_looks else {}
        for name in ("visual", "visual_mask", "boxes"):
            longest = max(
                (look[name].shape[1] for look in arrays_of_looks if name in look), default=0
            )
            for look in arrays_of_looks:
                if name in look:
                    after = [(0, 0)] * look[name].ndim
                    after[1] = (0, longest - look[name].shape[1])
                    look[name] = np.pad(look[name], after)
        return {
            name: np.stack([look[name] for look in arrays_of_looks], axis=1)
            for name in arrays_of_looks[0]
        }

    def look(self, look: Look) -> Arrays:
        if look.image is not None:
            assert self.served.image is not None
            image = decode(look.image, self.served.image)[None]
            if "features" not in self.plans:
                return {"image": image}
            visual = self.run("features", {"image": image})["visual"][0]
        else:
            assert look.features is not None
            visual = look.features
        boxes = look.boxes
        if boxes is not None:
            area = (boxes[:, 2:3] - boxes[:, 0:1]) * (boxes[:, 3:4] - boxes[:, 1:2])
            boxes = np.hstack([boxes, area])
            if self.served.options.get("global_region"):
                visual = np.vstack([visual.mean(axis=0), visual])
                boxes = np.vstack([np.array([0, 0, 1, 1, 1], dtype=np.float32), boxes])
        mask = np.ones((1, len(visual)), dtype=np.int64)
        inputs = {"visual": visual[None], "visual_mask": mask}
        return inputs if boxes is None else inputs | {"boxes": boxes[None]}

    def probabilities(self, logits: NDArray[Any]) -> list[float]:
        values = torch.from_numpy(logits).double()
        shares = torch.sigmoid(values) if self.served.multi_label else torch.softmax(values, 0)
        return [float(share) for share in shares]

    def best_labels(self, logits: NDArray[Any], top: int) -> list[tuple[str, float]]:
        ranking = zip(self.served.labels, self.probabilities(logits), strict=True)
        return sorted(ranking, key=lambda pair: -pair[1])[:top]

    def write(self, memory: Arrays) -> list[Hypothesis]:
        """Beams that read the whole text again for every word."""
        options, plan = self.served.options, self.plans["step"]
        rules = {name: options[name] for name in BeamSearch.__dataclass_fields__ if name in options}
        sizes = {"batch": 1, "past": 0}

        def step(token_ids: Any, cache: Any) -> Any:
            ids = np.concatenate([cache["ids"], token_ids], axis=2) if cache else token_ids
            past = {
                tensor.name: np.zeros(
                    [
                        sizes.get(dim, ids.shape[1]) if isinstance(dim, str) else dim
                        for dim in tensor.dims
                    ],
                    dtype=tensor.dtype,
                )
                for tensor in plan.inputs
                if tensor.name.startswith("past_")
            }
            return self.run("step", {"token_ids": ids, **past, **memory})["logits"], {"ids": ids}

        prompt = np.array([options["prompt_ids"]])
        return beam_search(step, prompt, BeamSearch(**rules))[0]

    def words(self, text: Hypothesis) -> str:
        options = self.served.options
        ids = text.token_ids.tolist()[len(options["prompt_ids"]) :]
        ids = ids[: ids.index(options["end_id"])] if options["end_id"] in ids else ids
        if "words" not in options:
            tokenizer = Tokenizer.from_file(str(self.root / options["tokenizer"]))
            return str(tokenizer.decode(ids))
        vocabulary = json.loads((self.root / options["words"]).read_text(encoding="utf-8"))
        written_words = [vocabulary[token] for token in ids]
        if options["merge_repeats"]:
            written_words = [
                word
                for at, word in enumerate(written_words)
                if at == 0 or written_words[at - 1] != word
            ]
        return " ".join(written_words)


def eager_of(model: Trained, root: Path) -> Eager:
    (root / "assets").mkdir()
    interface = model.recipe.serve(model.config, root / "assets")
    return Eager(model.recipe.graphs(model.network, model.config), interface, root)


def tag(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    best = eager.best_labels(eager.run("model", inputs)["logits"][0], TOP)
    return {"tags": [{"tag": label, "score": score} for label, score in best]}


def answer(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    if "model" in eager.plans:
        ranking = eager.best_labels(eager.run("model", inputs)["logits"][0], TOP)
    elif "score" in eager.plans:
        ranking = ranked(eager, eager.run("encoder", inputs))
    else:
        texts = eager.write(eager.run("encoder", inputs))
        ranking = [(eager.words(text), float(np.exp(text.score))) for text in texts]
    return {"answers": [{"answer": label, "score": score} for label, score in ranking]}


def ranked(eager: Eager, memory: Arrays) -> list[tuple[str, float]]:
    """Every answer scored alone, as long as it is."""
    rows = json.loads((eager.root / eager.served.options["answer_ids"]).read_text(encoding="utf-8"))
    pad_id = eager.served.text.pad_id if eager.served.text else 0
    assert eager.served.options["candidates"] == len(rows)
    totals = []
    for row in rows:
        ids = [token for place, token in enumerate(row) if place == 0 or token != pad_id]
        total = eager.run("score", {"answer_ids": np.array([[ids]]), **memory})["log_prob"][0, 0]
        if eager.served.options.get("first_word_twice"):
            past = {
                t.name: np.zeros(
                    [1 if d in ("batch", "beams") else 0 if d == "past" else d for d in t.dims],
                    np.float32,
                )
                for t in eager.plans["step"].inputs
                if t.name.startswith("past_")
            }
            first = eager.run("step", {"token_ids": np.array([[ids[:1]]]), **past, **memory})
            total += torch.log_softmax(torch.from_numpy(first["logits"][0, 0]), 0)[ids[1]].item()
        totals.append(float(total))
    shares = torch.softmax(torch.tensor(totals, dtype=torch.float64), 0).tolist()
    return sorted(zip(eager.served.labels, shares, strict=True), key=lambda pair: -pair[1])


def caption(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    text = eager.write(eager.run("encoder", inputs))[0]
    return {"caption": eager.words(text), "log_prob": float(text.log_probs.sum())}


def entail(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    ranking = eager.best_labels(eager.run("model", inputs)["logits"][0], 3)
    return {"label": ranking[0][0], "scores": dict(ranking)}


def reason(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    scores = dict(eager.best_labels(eager.run("model", inputs)["logits"][0], 2))
    return {"answer": scores["true"] > scores["false"], "score": scores["true"]}


def embed(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    graph = "text" if question.text is not None else "image"
    vector = eager.run(graph, inputs)[f"{graph}_embedding"][0]
    return {"embedding": (vector / np.linalg.norm(vector)).tolist(), "dim": len(vector)}


def match(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    arrays = dict(inputs)
    for graph in ("image", "text"):
        arrays |= eager.run(graph, inputs) if graph in eager.plans else {}
    logits = torch.from_numpy(eager.run("fusion", arrays)["match_logits"][0])
    score = float(logits[-1])
    probability = torch.sigmoid(logits)[0] if len(logits) == 1 else torch.softmax(logits, 0)[1]
    result: Answer = {"probability": float(probability), "itm_score": score}
    if "image_embedding" in arrays:
        result["cosine"] = float(arrays["image_embedding"][0] @ arrays["text_embedding"][0])
        if eager.served.options["retrieval_score"] == "match_logit + cosine":
            result["itm_score"] += result["cosine"]
    return result


def ground(eager: Eager, question: Question, inputs: Arrays) -> Answer:
    outputs = eager.run("model", inputs)
    if "region_scores" in outputs:
        skip = 1 if eager.served.options.get("global_region") else 0
        scores = torch.sigmoid(torch.from_numpy(outputs["region_scores"][0, skip:])).tolist()
        boxes = inputs["boxes"][0, skip:, :4].tolist()
        ranking = sorted(zip(boxes, scores, strict=True), key=lambda pair: -pair[1])[:TOP]
        return {"regions": [{"box": box, "score": score} for box, score in ranking]}
    result: Answer = {}
    if "word_maps" in outputs:
        grid = outputs["word_maps"][0].mean(axis=0)
        logits = torch.from_numpy(outputs["match_logits"][0])
        result["probability"] = float(torch.softmax(logits, 0)[1])
    else:
        grid = outputs["map"][0]
        result["similarity"] = float(outputs["similarity"][0, 0])
    rows, columns = grid.shape
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    result["peak"] = {"x": (column + 0.5) / columns, "y": (row + 0.5) / rows}
    result["grid"] = (grid.clip(0) / grid.max()).tolist()
    return result


ANSWERS: dict[str, Callable[[Eager, Question, Arrays], Answer]] = {
    "tag": tag,
    "answer": answer,
    "caption": caption,
    "entail": entail,
    "reason": reason,
    "embed": embed,
    "match": match,
    "ground": ground,
}
"""By task."""
