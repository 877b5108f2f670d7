"""Policies: who of the waiting comes first, and who yields when blocks run out."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol

from ...errors import ConfigError, suggest
from ..request import Request

NAMESPACE = "inferplane.policies"
OUTPUT_WEIGHT = 2
IDLE_TENANTS = 65536


class Ticket(NamedTuple):
    """A sequence as a policy sees it. serial: its place in the order of arrival, never used twice."""

    serial: int
    request: Request


class Policy(Protocol):
    """Deterministic, and without a clock: the same calls give the same answers.

    rank: a fixed order, lowest first, in which the running get tokens. The lowest of all is never preempted.
    push, remove: a ticket begins and ceases to wait; it may do so several times. peek: the next to run.
    victim: the index of the ticket that yields, of some in the order of rank. charge: what a ticket has used.
    leave: it ended; it waits no more.
    """

    def rank(self, ticket: Ticket) -> tuple[int, ...]: ...
    def push(self, ticket: Ticket) -> None: ...
    def remove(self, ticket: Ticket) -> None: ...
    def peek(self) -> Ticket | None: ...
    def victim(self, tickets: Sequence[Ticket]) -> int: ...
    def charge(self, ticket: Ticket, prompt_tokens: int, output_tokens: int) -> None: ...
    def leave(self, ticket: Ticket) -> None: ...


class Queue:
    """A heap of tickets by rank. A removed one stays until it surfaces, or until more than half are such."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, ...], Ticket]] = []
        self._waiting: set[int] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, rank: tuple[int, ...], ticket: Ticket) -> None:
        self._waiting.add(ticket.serial)
        heappush(self._heap, ((*rank, ticket.serial), ticket))

    def remove(self, ticket: Ticket) -> None:
        self._waiting.discard(ticket.serial)
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [entry for entry in self._heap if entry[1].serial in self._waiting]
            heapify(self._heap)

    def peek(self) -> Ticket | None:
        while self._heap and self._heap[0][1].serial not in self._waiting:
            heappop(self._heap)
        return self._heap[0][1] if self._heap else None


class FirstCome:
    """By arrival; the latest yields."""

    def __init__(self) -> None:
        self._queue = Queue()

    def rank(self, ticket: Ticket) -> tuple[int, ...]:
        return (ticket.serial,)

    def push(self, ticket: Ticket) -> None:
        self._queue.push(self.rank(ticket), ticket)

    def remove(self, ticket: Ticket) -> None:
        self._queue.remove(ticket)

    def peek(self) -> Ticket | None:
        return self._queue.peek()

    def victim(self, tickets: Sequence[Ticket]) -> int:
        return len(tickets) - 1

    def charge(self, ticket: Ticket, prompt_tokens: int, output_tokens: int) -> None:
        pass

    def leave(self, ticket: Ticket) -> None:
        self._queue.remove(ticket)


class ByPriority(FirstCome):
    """By the request's priority, lower first, then by arrival; the last of them yields."""

    def rank(self, ticket: Ticket) -> tuple[int, ...]:
        return (ticket.request.priority, ticket.serial)


class Fair:
    """The tenant that has used least is next; the tenant that has used most yields.

    Virtual token counters after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): a prompt token
    counts 1, a drawn one 2, and who returns after a pause starts no lower than those who wait, so that no credit is saved.
    """

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._queues: dict[str, Queue] = {}
        self._present: dict[str, set[int]] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._joined = 0
        self._floor = 0

    def rank(self, ticket: Ticket) -> tuple[int, ...]:
        return (ticket.serial,)

    def push(self, ticket: Ticket) -> None:
        tenant = ticket.request.tenant
        if tenant not in self._present:
            self._present[tenant] = set()
            self._idle.pop(tenant, None)
            lowest = self._lowest()
            floor = self._floor if lowest is None else self._used[lowest]
            self._used[tenant] = max(self._used.get(tenant, 0), floor)
        self._present[tenant].add(ticket.serial)
        if tenant not in self._queues:
            self._queues[tenant] = Queue()
            self._joined += 1
            heappush(self._heap, (self._used[tenant], self._joined, tenant))
        self._queues[tenant].push((), ticket)

    def remove(self, ticket: Ticket) -> None:
        queue = self._queues.get(ticket.request.tenant)
        if queue is not None:
            queue.remove(ticket)

    def peek(self) -> Ticket | None:
        tenant = self._lowest()
        return None if tenant is None else self._queues[tenant].peek()

    def _lowest(self) -> str | None:
        """The waiting tenant with the lowest counter; entries of the heap may be out of date, but only too low."""
        while self._heap:
            used, joined, tenant = self._heap[0]
            if not self._queues[tenant]:
                heappop(self._heap)
                del self._queues[tenant]
                self._floor = max(self._floor, used)
            elif used < self._used[tenant]:
                heapreplace(self._heap, (self._used[tenant], joined, tenant))
            else:
                return tenant
        return None

    def victim(self, tickets: Sequence[Ticket]) -> int:
        used = [self._used[ticket.request.tenant] for ticket in tickets]
        most = max(used)
        return max(i for i, amount in enumerate(used) if amount == most)

    def charge(self, ticket: Ticket, prompt_tokens: int, output_tokens: int) -> None:
        self._used[ticket.request.tenant] += prompt_tokens + OUTPUT_WEIGHT * output_tokens

    def leave(self, ticket: Ticket) -> None:
        self.remove(ticket)
        tenant = ticket.request.tenant
        present = self._present[tenant]
        present.discard(ticket.serial)
        if not present:
            del self._present[tenant]
            self._idle[tenant] = None
            if len(self._idle) > IDLE_TENANTS:
                forgotten, _ = self._idle.popitem(last=False)
                del self._used[forgotten]


BUILTIN: Mapping[str, Callable[[], Policy]] = {"fcfs": FirstCome, "priority": ByPriority, "fair": Fair}


def find_policy(name: str) -> Policy:
    """A fresh policy of that name, ours or a plugin's. Raises ConfigError."""
    if name in BUILTIN:
        return BUILTIN[name]()
    from stevedore.exception import NoMatches

    from ...platforms.registry import Driver

    try:
        manager: Any = Driver(NAMESPACE, name, invoke_on_load=True)
    except NoMatches:
        known = {*BUILTIN, *(entry.name for entry in entry_points(group=NAMESPACE))}
        raise ConfigError(f"policy {name!r} is unknown. {suggest(name, known)}") from None
    except Exception as error:
        raise ConfigError(f"policy {name!r} could not be loaded: {error}. Repair its package, or choose another.") from error
    policy: Policy = manager.driver
    return policy
