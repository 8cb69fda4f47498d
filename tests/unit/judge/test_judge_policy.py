from pathlib import Path

import pytest

from vlserve.control.judge import Policy, load_policy
from vlserve.errors import SettingsError

ROLLOUT = Path(__file__).parents[3] / "serving_config" / "rollout.yaml"


def write(folder: Path, text: str) -> Path:
    file = folder / "rollout.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_file_that_operators_edit_says_the_defaults():
    assert load_policy(ROLLOUT) == Policy()


def test_one_release_may_have_weights_and_hold_of_its_own():
    policy = load_policy(ROLLOUT, {"weights": [10, 100], "hold_s": 5})
    assert policy.weights == (10, 100)
    assert policy.hold_s == 5


def test_gates_split_alpha():
    policy = Policy()
    total = sum(policy.alpha_of(gate) for gate in type(policy.gates).model_fields)
    assert total == pytest.approx(policy.alpha)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: [50, 25, 100]", "do not rise"),
        ("weights: [5, 25]", "do not end at 100"),
        ("weights: []", "do not end at 100"),
        ("gates: {errors: {share: 0.9, margin: 0}}", "more than 1"),
        ("gates: {errors: {share: 0.1, margin: 0, marign: 1}}", "gates.errors.marign"),
        ("alpha: 0", "alpha"),
        ("unit: session", "unit"),
        ("- 5", "holds no settings"),
        ("weights: [", "not YAML"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        load_policy(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"rollout.yaml cannot be read"):
        load_policy(tmp_path / "rollout.yaml")


@pytest.mark.parametrize(
    "text", ["weights: [true, 100]", "alpha: true", "minimum: {pairs: true}", "hold_s: .inf"]
)
def test_a_number_is_finite_and_not_true(tmp_path, text):
    with pytest.raises(SettingsError, match=text.partition(":")[0]):
        load_policy(write(tmp_path, text))


def test_a_change_is_not_blamed_on_the_file(tmp_path):
    file = write(tmp_path, "alpha: 0.01")
    with pytest.raises(SettingsError, match=r"^changes of this release: weights: .*do not rise"):
        load_policy(file, {"weights": [5, 3]})
    with pytest.raises(SettingsError, match=r"^rollout.yaml: alpha"):
        load_policy(write(tmp_path, "alpha: 2"), {"weights": [5, 100]})
