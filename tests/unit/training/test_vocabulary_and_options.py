import pytest

from vlserve.errors import SettingsError
from vlserve.exporter.recipe import Recipe
from vlserve.training.options import DEMO_OPTIONS, parse_options
from vlserve.training.plan import training_plan
from vlserve.training.vocabulary import build_vocabulary


def test_commonest_characters_come_first_and_equal_ones_by_code_point() -> None:
    vocabulary = build_vocabulary(["猫猫猫", "bb a", "ab 狗狗"], min_count=2)
    ids = [vocabulary[character] for character in "b猫 a狗"]
    assert ids == [2, 3, 4, 5, 6]  # 0 pads, 1 is unknown


def test_the_vocabulary_does_not_depend_on_the_order_of_titles() -> None:
    titles = ["🔥 live", "直播", "live 直播 🔥"]
    assert build_vocabulary(titles, 1) == build_vocabulary(reversed(titles), 1)


def test_a_capital_letter_shares_the_id_of_its_small_one() -> None:
    assert build_vocabulary(["Aaβ", "bB猫ß"], 1) == {
        "A": 2, "a": 2, "B": 3, "b": 3, "ß": 4, "Β": 5, "β": 5, "猫": 6,
    }  # fmt: skip
    assert build_vocabulary(["İi"], 1) == {"I": 2, "i": 2, "İ": 3}


def test_rare_characters_are_left_to_the_unknown_id() -> None:
    assert set(build_vocabulary(["aab"], min_count=2)) == {"a", "A"}


def test_options_take_the_strings_of_the_command_line(recipe: Recipe) -> None:
    kind = training_plan(recipe).options
    values = {"epochs": "7", "learning_rate": "1e-2", "resnet_layers": "1,1,2,1"}
    options = parse_options(kind, values)
    assert (options.epochs, options.learning_rate) == (7, 0.01)
    assert options.model_dump()["resnet_layers"] == (1, 1, 2, 1)
    assert parse_options(kind, DEMO_OPTIONS).image.height == 224


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epocs": 3}, "epocs: Extra inputs"),
        ({"epochs": "many"}, "epochs: Input should be a valid integer"),
        ({"epochs": 0}, "epochs: Input should be greater"),
        ({"resnet_layers": "1,1"}, "resnet_layers: Field required"),
    ],
)
def test_a_wrong_option_is_named_beside_the_known_ones(
    recipe: Recipe, option: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=f"{message}.*Options are epochs, patience"):
        parse_options(training_plan(recipe).options, option)
