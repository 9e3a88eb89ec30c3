"""Formulas lowered to three-address code: shared parts found, equal operations grouped, scratch columns reused.

All formulas of a catalogue become one graph of operations, in which equal operations on equal operands are one
(value numbering). They run in one of two orders: ``Arithmetic.groups`` puts those of one kind together, for a bar as it
comes; ``Arithmetic.in_turn`` puts each soon before its reader, for blocks, whose columns would leave the cache between
the two. :class:`Places` gives each result a column that no later reader still needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mia_fast.features.expression import Expression
from mia_kernels import opcodes as op

COLUMN = -1
"""A column, or one so many rows back."""
NUMBER = -2
_COMMUTES = (op.ADD, op.MULTIPLY)
_FOLDS: dict[int, Callable[[float, float], float]] = {
    op.ADD: lambda a, b: a + b,
    op.SUBTRACT: lambda a, b: a - b,
    op.MULTIPLY: lambda a, b: a * b,
}
_NEVER_INFINITE = (
    op.CHECK,
    op.IS_MORE,
    op.IS_MORE_OR_EQUAL,
    op.SIGN,
    op.LOGARITHM,
    op.EXPONENTIAL,
    op.SINE_TURN,
    op.COSINE_TURN,
    op.FLOOR,
    op.SQUARE_ROOT,
)
"""Results that are a number or NaN, given operands that are."""
_AS_OPERANDS = (op.ABSOLUTE, op.NEGATE, op.LESSER, op.GREATER, op.CHOOSE, op.SQUARE_ROOT, op.FLOOR)


@dataclass(frozen=True, slots=True)
class Node:
    """A value: an operation on other values, a column (``slot``, ``back`` rows), or a number."""

    code: int
    operands: tuple[int, ...] = ()
    slot: int = -1
    back: int = 0
    number: float = 0.0
    after: int = -1
    """The value that must have been stored before this column is read."""


@dataclass(slots=True)
class Arithmetic:
    """The graph of all formulas."""

    nodes: list[Node] = field(default_factory=list)
    home: dict[int, int] = field(default_factory=dict)
    """The working columns of values that others than formulas read, or that are read rows later."""
    bounded: set[int] = field(default_factory=set)
    numbers: list[float] = field(default_factory=list)
    _known: dict[Node, int] = field(default_factory=dict)

    def _add(self, node: Node, bounded: bool) -> int:
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        if bounded:
            self.bounded.add(self._known[node])
        return self._known[node]

    def column(self, slot: int, *, back: int = 0, after: int = -1, bounded: bool = False) -> int:
        """The value of a working column; ``bounded`` if it is never infinite."""
        return self._add(Node(COLUMN, slot=slot, back=back, after=after), bounded)

    def number(self, value: float) -> int:
        """A number; it is held by a column of its own."""
        if value not in self.numbers:
            self.numbers.append(value)
        return self._add(Node(NUMBER, number=value), bounded=True)

    def operation(self, code: int, *operands: int) -> int:
        """The value of an operation; one of numbers is done at once."""
        given = [self.nodes[k] for k in operands]
        if code in _FOLDS and all(node.code == NUMBER for node in given):
            folded = _FOLDS[code](given[0].number, given[1].number)
            if abs(folded) < math.inf and (folded != 0.0 or math.copysign(1.0, folded) > 0):
                return self.number(folded)
        if code == op.NEGATE and given[0].code == NUMBER and given[0].number != 0.0:
            return self.number(-given[0].number)
        if code in _COMMUTES:
            operands = tuple(sorted(operands))
        bounded = code in _NEVER_INFINITE or (code in _AS_OPERANDS and self.bounded.issuperset(operands))
        return self._add(Node(code, operands), bounded)

    def ago(self, slot: int, rows: int, seconds: float, after: int, bounded: bool) -> int:
        """The value that many seconds ago."""
        return self._add(Node(op.AGO, slot=slot, back=rows, number=seconds, after=after), bounded)

    def checked(self, value: int) -> int:
        """The value, made missing where it is not finite."""
        return value if value in self.bounded else self.operation(op.CHECK, value)

    def formula(
        self,
        expression: Expression,
        value_of: Callable[[str], int],
        back: Callable[[str, int], int],
        ago: Callable[[str, float], int],
    ) -> int:
        """The value of a formula, given what its columns are now, rows back, and minutes ago."""
        stack: list[int] = []
        for token in expression.tokens:
            if token.code == op.PUSH_NUMBER:
                stack.append(self.number(float(token.number or 0.0)))
            elif token.column is not None and token.code == op.PUSH_COLUMN:
                stack.append(value_of(token.column))
            elif token.column is not None and token.code == op.PUSH_LAG:
                stack.append(back(token.column, token.bars))
            elif token.column is not None:
                stack.append(ago(token.column, token.minutes))
            else:
                count = 3 if token.code == op.CHOOSE else 2 if token.code in _TWO else 1
                stack[-count:] = [self.operation(token.code, *stack[-count:])]
        return self.checked(stack[0])

    def needs(self, value: int) -> tuple[int, ...]:
        """The values that must be there first."""
        node = self.nodes[value]
        return (*node.operands, node.after) if node.after >= 0 else node.operands

    def in_turn(self, wanted: Iterable[int], done: set[int]) -> list[tuple[int, list[int]]]:
        """As :meth:`groups`, one operation each, every one as soon before its reader as may be."""
        depth: list[int] = []
        for value in range(len(self.nodes)):  # what a value needs was there before it
            depth.append(1 + max((depth[n] for n in self.needs(value)), default=-1))
        order: list[tuple[int, list[int]]] = []
        stack = [*wanted][::-1]
        while stack:
            value = stack[-1]
            missing = [n for n in self.needs(value) if n not in done]
            if value in done:
                stack.pop()
            elif missing:  # the longest way first: the results that wait beside it are few
                stack.append(max(missing, key=depth.__getitem__))
            else:
                done.add(value)
                if self.nodes[value].code not in (COLUMN, NUMBER):
                    order.append((self.nodes[value].code, [value]))
        return order

    def groups(self, wanted: Iterable[int], done: set[int]) -> list[tuple[int, list[int]]]:
        """Operations for ``wanted`` that are not ``done``: (code, values) by groups that may run in this order."""
        todo: set[int] = set()
        stack = list(wanted)
        while stack:
            value = stack.pop()
            if value not in todo and value not in done:
                todo.add(value)
                stack += self.needs(value)
        plain = {v for v in todo if self.nodes[v].code in (COLUMN, NUMBER) and self.nodes[v].after < 0}
        done |= plain
        todo -= plain
        waits = {v: sum(1 for n in set(self.needs(v)) if n in todo) for v in todo}
        readers: dict[int, list[int]] = {}
        for v in todo:
            for n in set(self.needs(v)):
                readers.setdefault(n, []).append(v)
        ready: dict[int, list[int]] = {}
        order: list[tuple[int, list[int]]] = []

        def release(value: int) -> None:
            done.add(value)
            for reader in readers.get(value, ()):
                if reader in waits:
                    waits[reader] -= 1
                    if waits[reader] == 0:
                        offer(reader)

        def offer(value: int) -> None:
            if self.nodes[value].code == COLUMN:
                release(value)
            else:
                ready.setdefault(self.nodes[value].code, []).append(value)

        for v in sorted(todo):
            if waits[v] == 0:
                offer(v)
        while ready:
            code = max(ready, key=lambda c: (len(ready[c]), -c))  # the most of a kind first: few groups
            values = sorted(ready.pop(code))
            order.append((code, values))
            for v in values:
                release(v)
        return order


_TWO = (
    op.ADD,
    op.SUBTRACT,
    op.MULTIPLY,
    op.DIVIDE,
    op.LESSER,
    op.GREATER,
    op.IS_MORE,
    op.IS_MORE_OR_EQUAL,
)


class Places:
    """Where values lie: byte offsets from row p of working column 0; scratch columns are used again and again."""

    def __init__(self, arithmetic: Arithmetic, slots: int) -> None:
        self._graph = arithmetic
        self._numbers = {number: slots + k for k, number in enumerate(arithmetic.numbers)}
        self._first = slots + len(arithmetic.numbers)
        self._scratch: dict[int, int] = {}
        self._free: list[int] = []
        self.count = 0

    @property
    def columns(self) -> int:
        """How many columns there are, with numbers and scratch."""
        return self._first + self.count

    def assign(self, groups: Sequence[Sequence[int]], put: dict[int, int]) -> None:
        """Give every value of the groups a column, to be used again after its last reader, the last used first.

        ``put`` says after which group a value is put out. The result of an operation never shares a column with an
        operand of its group: a loop that might write what it reads would not be vectorised.
        """
        last = dict(put)
        for k, values in enumerate(groups):
            for v in values:
                for operand in self._graph.nodes[v].operands:
                    last[operand] = max(k, last.get(operand, k))
        ending: dict[int, list[int]] = {}
        for v, k in last.items():
            ending.setdefault(k, []).append(v)
        for k, values in enumerate(groups):
            for v in values:
                if v not in self._graph.home:
                    if not self._free:
                        self._free.append(self._first + self.count)
                        self.count += 1
                    self._scratch[v] = self._free.pop()
            self._free += [self._scratch[v] for v in sorted(ending.get(k, ())) if v in self._scratch]

    def of(self, value: int) -> int:
        """The byte offset of a value, where it lies between its operation and its last reader."""
        node = self._graph.nodes[value]
        if value in self._graph.home:
            slot, back = self._graph.home[value], 0
        elif node.code == COLUMN:
            slot, back = node.slot, node.back
        elif node.code == NUMBER:
            slot, back = self._numbers[node.number], 0
        else:
            slot, back = self._scratch[value], 0
        return 8 * (slot * op.STRIDE - back)
