"""The split of a release's callers: benchmarks/release/split.py with fewer of them. The keys and
salts are fixed, so what callers with a key meet is too."""

from pathlib import Path

from vlserve.drill.caller_split import SALTS, WEIGHTS, measure
from vlserve.testing.own_gateway import own_gateway
from vlserve.testing.stand_in_engine import stand_in


def test_callers_are_split_by_weight_stay_and_are_left_alone_by_other_releases(
    tmp_path: Path,
) -> None:
    with own_gateway(tmp_path) as own, stand_in("engine-0") as engine:
        result = measure(own.url, lambda models: own.route(models, [engine]), callers=1000)
    print(result.keyed, result.keyless)
    assert len(result.keyed) == len(SALTS) * len(WEIGHTS)
    assert result.problems() == []
    assert all(len(result.met[model, 100]) == 1000 for model in SALTS)
