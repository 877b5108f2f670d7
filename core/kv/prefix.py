"""The prefix index: which blocks hold which tokens, after which tokens, under which salt."""
from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from .salt import Salt
from .stats import Eviction

Digest = Callable[[bytes], bytes]
V = TypeVar("V")

RECENT_CHILDREN = 4
DOMAIN = b"inferplane.prefix.1"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Node:
    """One block's worth of tokens after its parent's. `blocks` has the block of each group, 0 where there is none.

    It lives as long as a block, a child or a running sequence needs it: `uses` counts them.
    """

    __slots__ = ("blocks", "key", "parent", "recent", "tokens", "uses")

    def __init__(self, key: bytes, parent: Node | None, tokens: bytes, groups: int) -> None:
        self.key = key
        self.parent = parent
        self.tokens = tokens
        self.blocks = [0] * groups
        self.uses = 0
        self.recent: tuple[bytes, ...] = ()


class PrefixIndex:
    """Blocks of `block_tokens` tokens, named by a SHA-256 chain over (parent, tokens) that starts at the salt.

    The names are the same in every process. They only find a node; the node's own parent and tokens prove it,
    so two prefixes with one name can never exchange blocks: the later one just is not indexed.
    """

    def __init__(self, block_tokens: int, groups: int, ghosts: int, digest: Digest = sha256) -> None:
        self.block_tokens = block_tokens
        self._groups = groups
        self._digest = digest
        self._nodes: dict[bytes, Node] = {}
        self._ghosts: OrderedDict[bytes, Eviction] = OrderedDict()
        self._seen: OrderedDict[bytes, bytes] = OrderedDict()
        self._remembered = ghosts

    def __len__(self) -> int:
        return len(self._nodes)

    def consistent(self) -> bool:
        """Each node is used as often as it counts, and by nothing but blocks and children: true when nothing runs."""
        children: dict[int, int] = {}
        for node in self._nodes.values():
            if node.parent is not None:
                children[id(node.parent)] = children.get(id(node.parent), 0) + 1
        return all(node.uses == sum(map(bool, node.blocks)) + children.get(id(node), 0) > 0 for node in self._nodes.values())

    def origin(self, salt: Salt) -> bytes:
        """The key of the root, before the first block."""
        return self._digest(DOMAIN + self.block_tokens.to_bytes(8, "little") + salt.encode())

    def extend(self, keys: list[bytes], origin: bytes, tokens: memoryview) -> None:
        """Append the keys of all full blocks that `keys` lacks. tokens: little-endian int32 bytes of the sequence."""
        width = 4 * self.block_tokens
        parent = keys[-1] if keys else origin
        for first in range(len(keys) * width, len(tokens) - width + 1, width):
            parent = self._digest(parent + tokens[first:first + width])
            keys.append(parent)

    def find(self, parent: Node | None, key: bytes, tokens: bytes) -> Node | None:
        """The node that really holds these tokens after this parent; a root's parent is None, its tokens are the salt."""
        node = self._nodes.get(key)
        return node if node is not None and node.parent is parent and node.tokens == tokens else None

    def ensure(self, parent: Node | None, key: bytes, tokens: bytes) -> Node | None:
        """As `find`, but made where it is missing. None: the key is taken by another prefix."""
        if key in self._nodes:
            return self.find(parent, key, tokens)
        if parent is not None:
            parent.uses += 1
            parent.recent = (tokens, *parent.recent[:RECENT_CHILDREN - 1])
        node = self._nodes[key] = Node(key, parent, tokens, self._groups)
        return node

    def pin(self, node: Node) -> None:
        node.uses += 1

    def unpin(self, node: Node) -> None:
        """Drop one use, and every node on the way to the root that nobody needs any more."""
        node.uses -= 1
        link: Node | None = node
        while link is not None and link.uses == 0:
            del self._nodes[link.key]
            link = link.parent
            if link is not None:
                link.uses -= 1

    def place(self, node: Node, group: int, block: int) -> None:
        """The group's block for these tokens."""
        node.blocks[group] = block
        node.uses += 1
        self._ghosts.pop(node.key, None)

    def evict(self, node: Node, group: int, eviction: Eviction) -> None:
        """The group's block is gone; its key and fate are remembered for a while."""
        self._remember(self._ghosts, node.key, eviction)
        self.displace(node, group)

    def displace(self, node: Node, group: int) -> None:
        """The group has no block for these tokens any more."""
        node.blocks[group] = 0
        self.unpin(node)

    def eviction(self, key: bytes) -> Eviction | None:
        return self._ghosts.get(key)

    def witness(self, plain: bytes, origin: bytes) -> bool:
        """Note that tokens named `plain` were seen under this origin. True: before, it was under another."""
        before = self._seen.get(plain)
        self._remember(self._seen, plain, origin)
        return before is not None and before != origin

    def _remember(self, book: OrderedDict[bytes, V], key: bytes, value: V) -> None:
        book[key] = value
        book.move_to_end(key)
        if len(book) > self._remembered:
            book.popitem(last=False)
