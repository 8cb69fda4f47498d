"""What the gateway is told to route where."""

from support.version_records import ALONE, ONE, STABLE, STARTING, version
from vlserve.control.domain import ModelRecord, ModelRoute, Routing, State
from vlserve.control.gateway.routing import desired_routing, known_instances


def test_a_version_whose_workers_are_replaced_keeps_its_traffic() -> None:
    versions = {"engine-0": {("tagger", 1): STARTING}}
    after = known_instances({"engine-0": ONE}, [ONE], versions, [STABLE], ALONE)
    assert after == {"engine-0": ONE}


def test_routing_opens_a_path_for_what_is_loaded_and_weights_as_desired() -> None:
    models = [
        ModelRecord("tagger", {2: 25, 1: 75}, (1,), "7"),
        ModelRecord("fresh", {}, (), ""),
        ModelRecord("gone", {}, (), ""),
    ]
    versions = [
        STABLE,
        version(2, State.CANARY),
        version(3, State.READY),
        version(4, State.LOADING),
        version(5, State.DRAINING),
        version(6, State.RETIRED),
        version(7, State.FAILED),
        version(1, State.READY, "fresh"),
        version(1, State.RETIRED, "gone"),
    ]
    assert desired_routing(models, versions, [ONE], ALONE) == Routing(
        models=(
            ModelRoute("fresh", {}, (1,)),
            ModelRoute("tagger", {2: 25, 1: 75}, (1, 2, 3), "7"),
        ),
        instances=(ONE,),
    )
    routes = desired_routing(models, versions, [], ALONE).models
    (tagger,) = [route for route in routes if route.weights]
    assert list(tagger.weights) == [2, 1]
