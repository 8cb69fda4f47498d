"""How often one named key may act."""

import pytest

from vlserve.control.api.act_limit import MOST_ACTS_A_MINUTE, ActLimit
from vlserve.control.named_keys import OWNER, Holder, Role
from vlserve.errors import TooManyActs

ANNA, CI = (Holder(name, frozenset({Role.RELEASE}), name) for name in ("anna", "ci"))


def test_each_key_has_its_own_limit_and_the_owner_none() -> None:
    now = [0.0]
    limit = ActLimit(lambda: now[0])
    for _ in range(MOST_ACTS_A_MINUTE):
        limit.count(ANNA)
    with pytest.raises(TooManyActs, match=r"anna.*again in 60 s"):
        limit.count(ANNA)
    limit.count(CI)
    for _ in range(2 * MOST_ACTS_A_MINUTE):
        limit.count(OWNER)
    now[0] += 59.0
    with pytest.raises(TooManyActs):
        limit.count(ANNA)
    now[0] += 1.0
    limit.count(ANNA)
