"""What golden cases do not show of the objectives: drawing, masks, bounds, empty batches."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.errors import TrainingError
from vlserve.training.objectives import classify
from vlserve.training.objectives.answer import answer_scores, soft_targets_bce
from vlserve.training.objectives.hard_negatives import draw_by_weight, negative_weights
from vlserve.training.objectives.masking import IGNORED, mask_regions, mask_words
from vlserve.training.objectives.momentum import Queue, follow, new_teacher, teacher_state
from vlserve.training.objectives.pretrain_regions import masked_regions
from vlserve.training.objectives.retrieve import ramped
from vlserve.training.objectives.self_critical import self_critical

WORDS, MASK_ID = 1000, 3


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_queue_is_written_over_from_its_oldest_column() -> None:
    queue = Queue(dim=2, size=4)
    for step in range(3):
        vectors = torch.full((2, 2), float(step))
        queue.put(vectors, -vectors, torch.tensor([step, step]))
    assert queue.images[0].tolist() == [2.0, 2.0, 1.0, 1.0]
    assert queue.texts[0].tolist() == [-2.0, -2.0, -1.0, -1.0]
    assert queue.ids.tolist() == [[2, 2, 1, 1]] and int(queue.pointer) == 2
    with pytest.raises(TrainingError, match="queue of 4 is no multiple of the 3 pairs"):
        queue.put(torch.zeros(3, 2), torch.zeros(3, 2))


def test_a_teacher_moves_a_small_step_and_learns_nothing_itself() -> None:
    network = nn.Linear(1, 1, bias=False)
    teacher = new_teacher(network)
    nn.init.constant_(network.weight, 1.0)
    nn.init.constant_(teacher.weight, 0.0)
    follow(teacher, network, 0.75)
    assert float(teacher.weight) == pytest.approx(0.25) and not teacher.weight.requires_grad


def test_a_published_teacher_stands_in_for_its_network() -> None:
    state = {"vision_proj.weight": torch.zeros(1), "vision_proj_m.weight": torch.ones(1)}
    assert teacher_state(state) == {"vision_proj.weight": torch.ones(1)}


def test_what_is_the_same_is_never_drawn_as_a_negative() -> None:
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    weights = negative_weights(torch.zeros(3, 3), same)
    torch.manual_seed(0)
    for _ in range(20):
        negatives = draw_by_weight(weights, weights)
        assert not same[torch.arange(3), negatives.images].any()
        assert not same[torch.arange(3), negatives.texts].any()


def test_a_batch_of_one_image_alone_draws_a_neighbour() -> None:
    negatives = draw_by_weight(torch.zeros(3, 3), torch.zeros(3, 3))
    assert negatives.images.tolist() == [1, 2, 0]


def test_chosen_words_are_hidden_replaced_or_left_and_special_ones_never() -> None:
    ids = torch.randint(10, WORDS, (200, 100), generator=drawn(1))
    ids[:, 0] = 2
    masked = mask_words(ids, torch.tensor([2]), mask_id=MASK_ID, words=WORDS, generator=drawn(2))
    chosen = masked.labels != IGNORED
    assert not chosen[:, 0].any() and (masked.labels[chosen] == ids[chosen]).all()
    assert (masked.ids[~chosen] == ids[~chosen]).all()
    count = int(chosen.sum())
    # 7 standard deviations of a binomial share, for a fixed seed
    assert share(chosen[:, 1:]) == pytest.approx(0.15, abs=7 * (0.15 * 0.85 / 19800) ** 0.5)
    hidden_share = share(masked.ids[chosen] == MASK_ID)
    assert hidden_share == pytest.approx(0.8, abs=7 * (0.8 * 0.2 / count) ** 0.5)
    kept_share = share(masked.ids[chosen] == ids[chosen])
    assert kept_share == pytest.approx(0.1, abs=7 * (0.1 * 0.9 / count) ** 0.5)


def test_nine_of_ten_chosen_regions_are_zeros_and_padding_is_not_chosen() -> None:
    visual, mask = torch.ones(100, 40, 3), torch.ones(100, 40)
    mask[:, 30:] = 0
    features, selection = mask_regions(visual, mask, generator=drawn(3))
    assert not selection[:, 30:].any() and not (features[selection == 0] == 0).any()
    zero_share = share((features == 0).all(dim=2)[selection == 1])
    assert zero_share == pytest.approx(0.9, abs=7 * (0.9 * 0.1 / int(selection.sum())) ** 0.5)


def share(mask: Tensor) -> float:
    return float(mask.float().mean())


@pytest.mark.parametrize("kind", ["distribution", "features"])
def test_no_asked_region_costs_nothing(kind: str) -> None:
    nothing = torch.zeros(2, 3, dtype=torch.int64)
    loss = masked_regions(torch.randn(2, 3, 4), torch.rand(2, 3, 4), nothing, kind)  # type: ignore[arg-type]
    assert float(loss) == 0.0


def test_the_teachers_share_grows_over_the_first_epoch() -> None:
    assert [ramped(0.4, step, 4) for step in (0, 2, 4, 9)] == [0.0, 0.2, 0.4, 0.4]


def test_without_focus_focal_loss_is_cross_entropy() -> None:
    logits, targets = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1])
    torch.testing.assert_close(
        classify.focal(logits, targets, 0.0), F.cross_entropy(logits, targets)
    )
    soft = F.one_hot(targets, 2).float()
    expected = F.binary_cross_entropy_with_logits(logits, soft)
    torch.testing.assert_close(classify.binary_focal(logits, soft, 0.0), expected)
    assert classify.focal(logits, targets, 2.0) < classify.focal(logits, targets, 0.0)


def test_answers_are_summed_over_and_scored_by_ten_people() -> None:
    logits = torch.zeros(2, 5)
    loss = soft_targets_bce(logits, torch.zeros(2, 5))
    assert float(loss) == pytest.approx(5 * torch.log(torch.tensor(2.0)).item())
    assert [answer_scores(n) for n in (0, 1, 3, 10)] == pytest.approx([0.0, 0.3, 0.9, 1.0])


def test_only_regions_that_overlap_enough_are_right_and_padding_counts_nothing() -> None:
    targets = classify.region_targets(torch.tensor([[0.5, 0.6, 0.9]]))
    assert targets[0].tolist() == pytest.approx([0.0, 0.6, 0.9])
    loss = classify.region_loss(torch.zeros(1, 3), targets, torch.tensor([[1.0, 0.0, 0.0]]))
    assert float(loss) == pytest.approx(0.6931, abs=1e-4)


def test_a_reward_above_the_mean_makes_its_text_likelier() -> None:
    log_probs = torch.tensor([[[-1.0, -1.0], [-2.0, -2.0]]], requires_grad=True)
    self_critical(log_probs, torch.tensor([[1.0, 0.0]])).backward()
    assert log_probs.grad is not None
    assert (log_probs.grad[0, 0] < 0).all() and (log_probs.grad[0, 1] > 0).all()
    same = self_critical(log_probs, torch.tensor([[0.7, 0.7]]))
    assert float(same.detach()) == pytest.approx(0.0, abs=1e-6)
