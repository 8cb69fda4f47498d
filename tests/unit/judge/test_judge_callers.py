from hashlib import blake2b

from vlserve.control.judge.callers import SLOTS, SeenCallers


def test_a_caller_is_counted_once_also_after_a_restart():
    seen = SeenCallers()
    assert seen.is_first_request("anna", 0, 1)
    assert not seen.is_first_request("anna", 0, 1)
    assert not SeenCallers(seen.text).is_first_request("anna", 0, 1)


def test_each_caller_is_counted_in_one_step_and_each_step_has_its_share():
    callers = [f"caller {number}" for number in range(3000)]
    counted = [
        {caller for caller in callers if seen.is_first_request(caller, turn, 3)}
        for turn, seen in enumerate((SeenCallers(), SeenCallers(), SeenCallers()))
    ]
    assert not counted[0] & counted[1] | counted[1] & counted[2] | counted[0] & counted[2]
    assert all(900 < len(step) < 1050 for step in counted)


def test_the_table_keeps_its_size_however_many_call():
    seen = SeenCallers()
    counted = sum(seen.is_first_request(str(number), 0, 1) for number in range(3 * SLOTS))
    assert 0.9 * SLOTS < counted <= SLOTS
    assert len(seen.text) == len(SeenCallers().text)


def test_who_counts_when_is_known_to_nobody_without_the_salt():
    callers = [f"caller {number}" for number in range(3000)]

    def counted(salt: str) -> set[str]:
        seen = SeenCallers(salt=salt)
        return {caller for caller in callers if seen.is_first_request(caller, 0, 3)}

    one, other = counted("a" * 32), counted("b" * 32)
    assert counted("a" * 32) == one
    assert 250 < len(one & other) < 420  # a ninth, as for two draws that know nothing of each other


def test_a_rollout_of_before_there_were_salts_goes_on_as_it_began():
    digest = blake2b(b"anna", digest_size=8).digest()
    turn = int.from_bytes(digest) % 3
    assert [SeenCallers().is_first_request("anna", each, 3) for each in range(3)] == [
        each == turn for each in range(3)
    ]


def test_any_key_will_do():
    assert SeenCallers().is_first_request("标签 \ud800 \0", 0, 1)
