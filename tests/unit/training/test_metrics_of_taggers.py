import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from vlserve.training.metrics.tagging import average_precisions, measure, predict

ONE_LABEL = np.eye(3, dtype=np.int64)[[0, 0, 1, 2]]
SCORES = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])


def test_figures_of_one_label_an_item() -> None:
    metrics = measure(ONE_LABEL, SCORES, multi_label=False)
    assert metrics.items == 4 and metrics.map_labels == 3
    assert metrics.accuracy == 0.75
    # F1 of 0: precision 1, recall 1/2; of 1: precision 1/2, recall 1; of 2: both 1
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # ranks: 0 at 1 and 3 -> (1 + 2/3) / 2; 1 at 1 -> 1; 2 at 1 -> 1
    assert metrics.map == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert set(metrics.to_json()) == {"items", "accuracy", "macro_f1", "map", "map_labels"}


def test_figures_of_several_labels_an_item() -> None:
    targets = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.6, 0.1], [0.6, 0.5, 0.2], [0.1, 0.2, 0.3]])
    metrics = measure(targets, scores, multi_label=True)
    assert predict(scores, multi_label=True).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert metrics.accuracy == pytest.approx(2 / 3)  # whole sets
    assert metrics.micro_f1 == pytest.approx(6 / 7)
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1) / 2)  # nobody has or gets the third
    assert metrics.map == 1.0 and metrics.map_labels == 2


@pytest.mark.parametrize("multi_label", [False, True])
def test_figures_are_those_of_scikit_learn(multi_label: bool) -> None:
    random = np.random.default_rng(0)
    for items in (1, 2, 5, 40):
        scores = random.random((items, 6))
        targets = np.eye(6, dtype=np.int64)[random.integers(0, 4, items)]
        if multi_label:
            targets = (random.random((items, 6)) < 0.3).astype(np.int64)
        predictions = predict(scores, multi_label=multi_label)
        metrics = measure(targets, scores, multi_label=multi_label)
        assert metrics.accuracy == pytest.approx(accuracy_score(targets, predictions))
        present = (targets | predictions).any(axis=0)
        macro = f1_score(targets[:, present], predictions[:, present], average="macro")
        assert metrics.macro_f1 == pytest.approx(macro)
        if multi_label:
            micro = f1_score(targets, predictions, average="micro")
            assert metrics.micro_f1 == pytest.approx(micro)


def test_equal_scores_go_to_the_first_label_as_in_serving() -> None:
    assert predict(np.full((1, 3), 1 / 3), multi_label=False).tolist() == [[1, 0, 0]]


def test_labels_without_items_have_no_average_precision_and_do_not_count() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.1, 0.5]])
    precisions = average_precisions(targets, scores)
    assert precisions[0] == pytest.approx(5 / 6) and np.isnan(precisions[1])
    metrics = measure(targets, scores, multi_label=True)
    assert metrics.map == pytest.approx(5 / 6) and metrics.map_labels == 1


def test_map_of_chosen_labels_is_the_mean_of_theirs() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((50, 6)) < 0.3).astype(np.int64)
    scores = random.random((50, 6)).round(1)  # many ties
    metrics = measure(targets, scores, multi_label=True, map_columns=[1, 4])
    assert metrics.map == pytest.approx(average_precisions(targets, scores)[[1, 4]].mean())
    assert metrics.map_labels == 2


def test_intervals_are_those_of_figures_on_the_drawn_items() -> None:
    random = np.random.default_rng(1)
    targets = (random.random((12, 5)) < 0.3).astype(np.int64)
    scores = random.random((12, 5)).round(1)  # many ties
    generator = np.random.default_rng(7)
    means = []
    for _ in range(50):
        sample = generator.integers(0, 12, 12)
        means.append(np.nanmean(average_precisions(targets[sample], scores[sample])))
    metrics = measure(targets, scores, multi_label=True, resamples=50, seed=7)
    assert metrics.intervals_95["map"] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_intervals_hold_the_figure_repeat_by_seed_and_narrow_with_more_items() -> None:
    random = np.random.default_rng(0)

    def intervals(items: int, seed: int = 0) -> dict[str, tuple[float, float]]:
        targets = np.eye(4, dtype=np.int64)[random.integers(0, 4, items)]
        scores = targets + random.normal(0, 0.7, (items, 4))
        metrics = measure(targets, scores, multi_label=False, resamples=100, seed=seed)
        low, high = metrics.intervals_95["accuracy"]
        assert low < metrics.accuracy < high
        assert set(metrics.intervals_95) == {"accuracy", "macro_f1", "map"}
        repeat = measure(targets, scores, multi_label=False, resamples=100, seed=seed)
        assert repeat.intervals_95 == metrics.intervals_95
        return metrics.intervals_95

    few, many = intervals(40), intervals(400)
    for name in few:
        assert many[name][1] - many[name][0] < few[name][1] - few[name][0]


def test_one_item_has_figures_but_no_interval() -> None:
    metrics = measure(ONE_LABEL[:1], SCORES[:1], multi_label=False, resamples=100)
    assert metrics.accuracy == 1.0 and metrics.map == 1.0 and not metrics.intervals_95
