import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from vlserve.errors import TrainingError
from vlserve.runtime.manifest import ImageInput
from vlserve.training import tagger_learning
from vlserve.training.dataset import Dataset
from vlserve.training.encoded_features import EncodedSamples
from vlserve.training.plots import confusions
from vlserve.training.tagger_augmentation import Augmentation
from vlserve.training.tagger_learning import (
    add_dropout,
    class_weights,
    make_loss,
    measure_tags,
    solve,
)

SIZE = ImageInput(height=16, width=24)
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (SIZE.mean, SIZE.std))
UNKNOWN = 1


def augmentation(seed: int) -> Augmentation:
    return Augmentation(SIZE, UNKNOWN, torch.Generator().manual_seed(seed))


def images(count: int = 4) -> torch.Tensor:
    pixels = torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return (pixels - MEAN) / STD


def test_augmented_images_keep_their_shape_and_range_and_follow_the_seed() -> None:
    result = augmentation(1).images(images())
    assert result.shape == (4, 3, 16, 24)
    pixels = result * STD + MEAN
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    assert torch.equal(result, augmentation(1).images(images()))
    assert not torch.equal(result, augmentation(2).images(images()))


def test_every_image_is_changed_in_its_own_way() -> None:
    same = images(1).expand(4, -1, -1, -1)
    result = augmentation(0).images(same)
    for index in range(4):
        assert not torch.allclose(result[index], same[index], atol=1e-3)
        assert not any(torch.equal(result[index], result[other]) for other in range(index))


def test_some_images_are_mirrored() -> None:
    ramp = (torch.linspace(0.3, 0.6, 24).expand(40, 3, 16, 24) - MEAN) / STD
    result = augmentation(0).images(ramp)
    rises = (result[..., -1] > result[..., 0]).all(dim=(1, 2))
    assert 5 < int(rises.sum()) < 35


def test_titles_lose_an_end_and_some_characters_but_keep_their_order() -> None:
    row = np.arange(2, 52)
    rows = augmentation(0).titles([row] * 30 + [row[:0], row[:1]])
    assert len(rows[-2]) == 0 and len(rows[-1]) == 1
    for title in rows[:30]:
        assert 35 <= len(title) <= 50
        characters = title[title != UNKNOWN]
        assert len(characters) >= len(title) / 2 and (np.diff(characters) > 0).all()
    assert 0.05 < float(np.mean(np.concatenate(rows[:30]) == UNKNOWN)) < 0.15
    assert row.tolist() == list(range(2, 52)), "the cached ids stay as they are"
    repeat = augmentation(0).titles([row] * 30)
    assert all(np.array_equal(ids, other) for ids, other in zip(rows, repeat, strict=False))


def test_dropout_acts_in_training_alone_and_adds_no_parameter() -> None:
    plain = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 3))
    network = copy.deepcopy(plain)
    add_dropout(network, 0.5)
    assert network.state_dict().keys() == plain.state_dict().keys()
    ids = torch.tensor([1, 2, 3])
    assert torch.equal(network.eval()(ids), plain(ids))
    assert not torch.equal(network.train()(ids), plain(ids))


def test_losses_are_cross_entropy_and_binary_cross_entropy() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3]])
    single_targets = torch.tensor([[1, 0, 0], [0, 0, 1]])
    multi_targets = torch.tensor([[1, 0, 1], [0, 0, 0]])
    single = make_loss(multi_label=False, label_smoothing=0.0)(logits, single_targets)
    assert single == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 2]))))
    multi = make_loss(multi_label=True, label_smoothing=0.0)(logits, multi_targets)
    expected = np.log1p(np.exp(np.where(multi_targets == 1, -logits, logits))).mean()
    assert float(multi) == pytest.approx(float(expected), rel=1e-5)


def test_class_weights_level_rare_and_common_labels() -> None:
    targets = np.eye(3, dtype=np.int64)[[0] * 16 + [1] * 4 + [2]]
    assert class_weights(targets, 0.0).tolist() == [1, 1, 1]
    level = class_weights(targets, 1.0)  # every label's items weigh 7 of 21 together
    torch.testing.assert_close(level * torch.tensor([16, 4, 1]), torch.full((3,), 7.0))
    absent = class_weights(np.eye(4, dtype=np.int64)[[0, 0, 1]], 1.0)
    assert absent.isfinite().all() and absent[3] == absent[1] == 2 * absent[0]
    between = class_weights(targets, 0.5)
    torch.testing.assert_close(between / between[0], torch.tensor([1.0, 2.0, 4.0]))
    assert float((between * torch.tensor([16, 4, 1])).sum()) == pytest.approx(21)


def test_a_weighted_loss_is_the_weighted_mean_of_the_items_losses() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.1, 0.2], [1.0, 0.0]])
    targets = torch.tensor([[1, 0], [0, 1], [1, 0]])
    weights = torch.tensor([1.0, 3.0])
    losses = [float(-logits[row].log_softmax(0)[targets[row].argmax()]) for row in range(3)]
    loss = make_loss(multi_label=False, label_smoothing=0.0, class_weights=weights)
    expected = (losses[0] + 3 * losses[1] + losses[2]) / 5
    assert float(loss(logits, targets)) == pytest.approx(expected)


class Linear(nn.Linear):
    """Takes what it reads by name."""

    def forward(self, visual: torch.Tensor) -> torch.Tensor:
        return super().forward(visual)


def test_a_linear_network_is_solved_like_a_logistic_regression() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(90, 6)).astype(np.float32)
    truth = (x @ random.normal(size=(6, 3)) + random.normal(size=(90, 3))).argmax(axis=1)
    truth[:50][truth[:50] == 2] = 0
    samples = EncodedSamples({"visual": x}, np.eye(3, dtype=np.int64)[truth])
    weights = class_weights(samples.targets, 1.0)
    loss_of = make_loss(multi_label=False, label_smoothing=0, class_weights=weights)
    network = Linear(6, 3)
    solution = solve(network, loss_of, samples, penalty=0.5)
    assert solution.converged
    reference = LogisticRegression(C=2, class_weight="balanced", tol=1e-8, max_iter=500).fit(
        x, truth
    )
    expected = reference.predict_log_proba(x)
    scores = network(torch.from_numpy(x)).log_softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    second = Linear(6, 3)
    assert solve(second, loss_of, samples, penalty=0.5).loss == pytest.approx(
        solution.loss, abs=1e-5
    )


class Averaged(nn.Linear):
    """Has what it reads averaged, and counts of how many items."""

    items = 0

    def forward(self, visual: torch.Tensor) -> torch.Tensor:
        return self.logits(**self.constants(visual))

    def constants(self, visual: torch.Tensor) -> dict[str, torch.Tensor]:
        self.items += len(visual)
        return {"means": visual.mean(dim=1)}

    def logits(self, means: torch.Tensor) -> torch.Tensor:
        return super().forward(means)


def test_what_no_weight_changes_is_computed_once_for_all_steps() -> None:
    random = np.random.default_rng(0)
    cells = random.normal(size=(90, 5, 6)).astype(np.float32)
    targets = np.eye(3, dtype=np.int64)[random.integers(3, size=90)]
    loss_of = make_loss(multi_label=False, label_smoothing=0)
    torch.manual_seed(0)
    averaged = Averaged(6, 3)
    plain = Linear(6, 3)
    plain.load_state_dict(averaged.state_dict())
    solution = solve(averaged, loss_of, EncodedSamples({"visual": cells}, targets), penalty=0.5)
    assert averaged.items == 90
    means = torch.from_numpy(cells).mean(dim=1).numpy()
    expected = solve(plain, loss_of, EncodedSamples({"visual": means}, targets), penalty=0.5)
    assert solution.converged and solution.loss == pytest.approx(expected.loss, abs=1e-6)
    torch.testing.assert_close(averaged.weight, plain.weight, atol=1e-4, rtol=1e-3)


def test_several_labels_are_solved_like_a_logistic_regression_each() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(90, 6)).astype(np.float32)
    targets = (x @ random.normal(size=(6, 4)) + random.normal(size=(90, 4)) > 0.5).astype(np.int64)
    samples = EncodedSamples({"visual": x}, targets)
    loss_of = make_loss(multi_label=True, label_smoothing=0, summed=True)
    network = Linear(6, 4)
    assert solve(network, loss_of, samples, penalty=0.5).converged
    probabilities = network(torch.from_numpy(x)).sigmoid().detach().numpy()
    for label in range(4):
        reference = LogisticRegression(C=2, tol=1e-8, max_iter=500).fit(x, targets[:, label])
        expected = reference.predict_proba(x)[:, 1]
        np.testing.assert_allclose(probabilities[:, label], expected, atol=1e-3)


def test_a_search_that_ends_before_the_optimum_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    samples = EncodedSamples({"visual": x}, np.eye(2, dtype=np.int64)[np.arange(20) % 2])
    loss_of = make_loss(multi_label=False, label_smoothing=0)
    monkeypatch.setattr(tagger_learning, "MAX_STEPS", 2)
    assert not solve(Linear(4, 2), loss_of, samples, penalty=0.5).converged
    x[0, 0] = np.nan
    with pytest.raises(TrainingError, match="no longer a number"):
        solve(Linear(4, 2), loss_of, samples, penalty=0.5)


class Given(nn.Module):
    """Logits as the items have them."""

    def forward(self, visual: torch.Tensor) -> torch.Tensor:
        return visual


def test_a_question_is_right_where_the_best_answer_is_one_of_its_own() -> None:
    """Once normalised, also where train does not show it in those letters; wrong where train shows
    none of them."""
    anything: Any = None
    answers = [("two",), ("2", "pair"), ("green",), ("red", "green"), ("blue",)]
    best = np.array([0, 0, 1, 1, 0])  # two, two, red, red, two
    samples = EncodedSamples(
        {"visual": np.eye(2, dtype=np.float32)[best]},
        np.array([[1, 0], [0, 0], [0, 0], [0, 1], [0, 0]]),
    )
    data = Dataset(
        config={"task": "answer", "labels": ["two", "red"]},
        image=anything,
        tokenizer=anything,
        train=samples,
        val=samples,
        val_labels=answers,
        multi_label=False,
        bad_lines=(),
    )
    metrics, scores = measure_tags(Given(), data)
    assert metrics.items == 5 and metrics.accuracy == pytest.approx(3 / 5)
    # what train shows no answer of has no row
    assert confusions(samples.targets, scores).tolist() == [[1, 0], [0, 1]]
    nothing = np.zeros((2, 3), dtype=np.int64)
    assert confusions(nothing, np.ones((2, 3))).tolist() == [[0] * 3] * 3
