"""What Server-Timing says, and that its parts add up to what clients waited for."""

import pytest

from vlserve.loadgen.request_record import RequestRecord
from vlserve.loadgen.stage_times import IN_HANDLER, STAGES, read_timing, stages_of, where_time_went

HANDLED = dict(zip(IN_HANDLER, (3.0, 0.5, 5.0, 0.25, 0.25), strict=True))


def test_headers_of_handler_and_gateway_are_read_together() -> None:
    headers = ["decode;dur=2.1, tokenise;dur=0.1", 'engine;desc="all";dur=20729e-3']
    assert read_timing(headers) == {"decode": 2.1, "tokenise": 0.1, "engine": 20.729}


@pytest.mark.parametrize("header", ["", "cache", "cache;dur=", "cache;dur=fast", ";;,,=", "a;b=1"])
def test_what_says_no_time_is_left_out(header: str) -> None:
    assert read_timing([header]) == {}
    assert stages_of(10.0, read_timing([header])) is None


def test_stages_add_up_to_the_latency() -> None:
    stages = stages_of(20.0, {**HANDLED, "engine": 15.0})
    assert stages == {"gateway": 5.0, "queue": 6.0, **HANDLED}
    assert tuple(stages) == STAGES


def test_means_of_all_and_of_the_slowest() -> None:
    def answer(latency_ms: float, engine_ms: float) -> RequestRecord:
        return RequestRecord(
            0.0, 0.0, latency_ms, version=1, timing={**HANDLED, "engine": engine_ms}
        )

    records = [answer(20.0, 15.0)] * 198 + [answer(60.0, 50.0), answer(100.0, 50.0)]
    silent = [RequestRecord(0.0, 0.0, 10.0, version=1)] * 50
    failures = [RequestRecord(0.0, 0.0, 900.0, failure="HTTP 503")]
    breakdown = where_time_went([*records, *silent, *failures])
    assert breakdown is not None
    assert breakdown.share == 0.8
    assert (breakdown.all.requests, breakdown.slowest.requests) == (200, 2)
    assert (breakdown.all.latency_ms, breakdown.slowest.latency_ms) == pytest.approx((20.6, 80.0))
    for means in (breakdown.all, breakdown.slowest):
        assert sum(means.stage_ms.values()) == pytest.approx(means.latency_ms)
    assert breakdown.slowest.stage_ms["gateway"] == pytest.approx(30.0)
    assert where_time_went([*silent, *failures]) is None
