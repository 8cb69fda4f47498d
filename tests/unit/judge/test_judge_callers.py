from hashlib import blake2b

from vlserve.control.judge.seen_callers import SLOTS, SeenCallers


def test_a_caller_is_counted_once_also_after_a_restart():
    table = SeenCallers()
    assert table.is_first_request("anna", 0, 1)
    assert not table.is_first_request("anna", 0, 1)
    assert not SeenCallers(table.text).is_first_request("anna", 0, 1)


def test_each_caller_is_counted_in_one_step_and_each_step_has_its_share():
    callers = [f"caller {number}" for number in range(3000)]
    steps = [
        {caller for caller in callers if table.is_first_request(caller, turn, 3)}
        for turn, table in enumerate((SeenCallers(), SeenCallers(), SeenCallers()))
    ]
    assert not steps[0] & steps[1] | steps[1] & steps[2] | steps[0] & steps[2]
    assert all(900 < len(step) < 1050 for step in steps)


def test_the_table_keeps_its_size_however_many_call():
    table = SeenCallers()
    count = sum(table.is_first_request(str(number), 0, 1) for number in range(3 * SLOTS))
    assert 0.9 * SLOTS < count <= SLOTS
    assert len(table.text) == len(SeenCallers().text)


def test_who_counts_when_is_known_to_nobody_without_the_salt():
    callers = [f"caller {number}" for number in range(3000)]

    def sample(salt: str) -> set[str]:
        table = SeenCallers(salt=salt)
        return {caller for caller in callers if table.is_first_request(caller, 0, 3)}

    first, other = sample("a" * 32), sample("b" * 32)
    assert sample("a" * 32) == first
    # A ninth is in both, as for two draws that know nothing of each other.
    assert 250 < len(first & other) < 420


def test_a_rollout_of_before_there_were_salts_goes_on_as_it_began():
    digest = blake2b(b"anna", digest_size=8).digest()
    turn = int.from_bytes(digest) % 3
    assert [SeenCallers().is_first_request("anna", each, 3) for each in range(3)] == [
        each == turn for each in range(3)
    ]


def test_any_key_will_do():
    assert SeenCallers().is_first_request("标签 \ud800 \0", 0, 1)
