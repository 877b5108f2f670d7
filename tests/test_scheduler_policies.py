"""Who comes first, and who yields."""
from __future__ import annotations

import pytest
from inferplane.core.request import Request, SamplingParams
from inferplane.core.scheduler.config import SchedulerConfig
from inferplane.core.scheduler.policy import BUILTIN, Fair, Policy, Queue, Ticket, find_policy
from inferplane.core.scheduler.scheduler import Scheduler
from inferplane.errors import ConfigError
from inferplane.ops.state import StateArray, StateGroup

FULL = StateGroup("full", (0,), {"k": StateArray(1, 8, "float32")})


def ticket(serial: int, tenant: str = "", priority: int = 0) -> Ticket:
    return Ticket(serial, Request(f"r{serial}", [serial], SamplingParams(), 4, tenant=tenant, priority=priority))


def order(policy: Policy) -> list[int]:
    served = []
    while (first := policy.peek()) is not None:
        served.append(first.serial)
        policy.remove(first)
        policy.charge(first, 10, 0)
    return served


def served(policy: str, requests: list[Request], **config) -> list[str]:
    """In which order they end when one runs at a time."""
    one = Scheduler(SchedulerConfig(1000, max_num_seqs=1, policy=policy, **config), [FULL], [100])
    for request in requests:
        one.add(request, 0.0)
    ended = []
    while (plan := one.plan(0.0)) is not None:
        ended += [u.key.request_id for u in one.update(plan, dict.fromkeys(plan.samples, 7), 0.0) if u.reason]
    return ended


def test_first_come_is_first_served() -> None:
    policy = find_policy("fcfs")
    for serial in (3, 1, 2):
        policy.push(ticket(serial))
    assert order(policy) == [1, 2, 3]


def test_a_lower_priority_number_is_served_first_and_equals_in_order() -> None:
    policy = find_policy("priority")
    for serial, priority in ((1, 5), (2, -1), (3, 5), (4, 0)):
        policy.push(ticket(serial, priority=priority))
    assert order(policy) == [2, 4, 1, 3]


def test_tenants_take_turns_however_many_requests_one_has() -> None:
    policy = Fair()
    for serial in range(1, 7):
        policy.push(ticket(serial, "many"))
    for serial in (7, 8):
        policy.push(ticket(serial, "few"))
    assert order(policy)[:4] == [1, 7, 2, 8]


def test_a_tenant_that_comes_late_has_saved_no_credit() -> None:
    policy = Fair()
    for serial in range(1, 12):
        policy.push(ticket(serial, "early"))
    for _ in range(5):
        first = policy.peek()
        assert first is not None
        policy.remove(first)
        policy.charge(first, 100, 0)
    for serial in range(12, 16):
        policy.push(ticket(serial, "late"))
    assert order(policy)[:4] in ([6, 12, 7, 13], [12, 6, 13, 7])


def test_the_tenant_that_used_most_yields_and_of_its_requests_the_latest() -> None:
    policy = Fair()
    tickets = [ticket(1, "a"), ticket(2, "b"), ticket(3, "b"), ticket(4, "a")]
    for one in tickets:
        policy.push(one)
    policy.charge(tickets[1], 50, 0)
    assert policy.victim(tickets) == 2


def test_drawn_tokens_count_twice_as_much_as_prompt_tokens() -> None:
    policy = Fair()
    for serial, tenant in ((1, "a"), (2, "b"), (3, "a"), (4, "b")):
        policy.push(ticket(serial, tenant))
    policy.charge(ticket(1, "a"), 0, 10)
    policy.charge(ticket(2, "b"), 19, 0)
    first = policy.peek()
    assert first is not None
    assert first.request.tenant == "b"


def test_a_tenant_that_left_is_forgotten_without_harm() -> None:
    policy = Fair()
    for serial in range(1, 4):
        policy.push(ticket(serial, "a"))
        policy.leave(ticket(serial, "a"))
        assert policy.peek() is None
    policy.push(ticket(9, "a"))
    assert order(policy) == [9]


def test_removed_tickets_do_not_pile_up() -> None:
    queue = Queue()
    for serial in range(10_000):
        queue.push((), ticket(serial))
        if serial % 100:
            queue.remove(ticket(serial))
    assert len(queue) == 100
    assert len(queue._heap) < 400


@pytest.mark.parametrize(("policy", "expected"), [("fcfs", "abcd"), ("priority", "cbda"), ("fair", "acbd")])
def test_a_policy_decides_who_runs(policy: str, expected: str) -> None:
    requests = [Request(name, [ord(name)] * 20, SamplingParams(), 4, tenant=tenant, priority=priority)
                for name, tenant, priority in (("a", "x", 3), ("b", "x", 1), ("c", "y", 0), ("d", "y", 2))]
    assert "".join(served(policy, requests)) == expected


@pytest.mark.parametrize("policy", sorted(BUILTIN))
def test_each_instance_has_a_queue_of_its_own(policy: str) -> None:
    find_policy(policy).push(ticket(1))
    assert find_policy(policy).peek() is None


def test_an_unknown_policy_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"policy 'priorty' is unknown. Did you mean 'priority'\? Known: fair, fcfs, priority"):
        Scheduler(SchedulerConfig(100, policy="priorty"), [FULL], [10])
