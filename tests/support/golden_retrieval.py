"""The originals' evaluation of retrieval: the best by cosine are scored again by matching."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from support.golden_cases import Case
from vlserve.models.vit import interpolate_positions
from vlserve.runtime.types import Arrays

UNSCORED = -100.0


def rerank(
    cosine: NDArray[Any],
    score: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
    candidates: int,
    image_of_text: NDArray[Any],
) -> Arrays:
    """cosine (images, texts); ``score`` of pairs: places of images, places of texts -> (pairs,)."""
    i2t, t2i = np.full(cosine.shape, UNSCORED), np.full(cosine.T.shape, UNSCORED)
    for image, texts in enumerate(_top_places(cosine, candidates)):
        i2t[image, texts] = score(np.full_like(texts, image), texts)
    for text, images in enumerate(_top_places(cosine.T, candidates)):
        t2i[text, images] = score(images, np.full_like(images, text))
    return {"score_i2t": i2t, "score_t2i": t2i, "metrics": _metrics(i2t, t2i, image_of_text)}


def _top_places(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of the largest along the last axis, best first."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def interpolated(case: Case) -> Arrays:
    """The checkpoint's position embeddings for the image size that the case asks for."""
    name = "interpolated_pos_embed"
    if name not in case.config["outputs"]:
        return {}
    side = int((case.config["outputs"][name]["shape"][1] - 1) ** 0.5)
    positions = torch.from_numpy(case.arrays("state_dict")["visual_encoder.pos_embed"])
    return {name: interpolate_positions(positions, side, side).numpy()}


def _metrics(i2t: NDArray[Any], t2i: NDArray[Any], image_of_text: NDArray[Any]) -> NDArray[Any]:
    """R@1, 5, 10 and their mean in percent both ways, in the alphabetical order of their names."""
    own_image = np.arange(len(t2i))
    text_ranks = [
        min(_rank(row, text) for text in own_image[image_of_text == image])
        for image, row in enumerate(i2t)
    ]
    image_ranks = [_rank(row, image) for row, image in zip(t2i, image_of_text, strict=True)]
    txt, img = _recalls(text_ranks), _recalls(image_ranks)
    mean = {"r_mean": (np.mean(list(txt.values())) + np.mean(list(img.values()))) / 2}
    figures = {f"txt_{name}": value for name, value in txt.items()}
    figures |= {f"img_{name}": value for name, value in img.items()}
    figures |= mean | {"txt_r_mean": np.mean(list(txt.values()))}
    figures["img_r_mean"] = np.mean(list(img.values()))
    return np.array([figures[name] for name in sorted(figures)])


def _rank(scores: NDArray[Any], place: int) -> int:
    # reversed ascending order, as the originals sort: it decides among the unscored
    return int(np.flatnonzero(np.argsort(scores)[::-1] == place)[0])


def _recalls(ranks: list[int]) -> dict[str, float]:
    return {f"r{k}": 100.0 * float(np.mean(np.array(ranks) < k)) for k in (1, 5, 10)}
