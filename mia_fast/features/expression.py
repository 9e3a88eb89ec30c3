"""Formulas of the catalogue: from text to tokens that one kernel interprets.

``+ - * /``, ``> >= < <=`` (1 or 0), names of columns, numbers, and the functions listed in
:data:`FUNCTIONS`. A missing operand makes the result missing; so does a division by zero.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from mia_fast.errors import ConfigError
from mia_kernels import opcodes as op

_ONE = {
    "abs": op.ABSOLUTE,
    "sqrt": op.SQUARE_ROOT,
    "log": op.LOGARITHM,
    "exp": op.EXPONENTIAL,
    "sign": op.SIGN,
    "floor": op.FLOOR,
    "sin_turn": op.SINE_TURN,
    "cos_turn": op.COSINE_TURN,
}
_TWO = {"min": op.LESSER, "max": op.GREATER}
FUNCTIONS = {
    **dict.fromkeys(_ONE, "one value"),
    **dict.fromkeys(_TWO, "two values"),
    "where": "where(condition, value if not 0, value if 0)",
    "lag": "lag(column, bars): the value that many bars back",
    "ago": "ago(column, minutes): the last value known that many minutes ago",
}
_LARGEST = 1e300
_BINARY = {ast.Add: op.ADD, ast.Sub: op.SUBTRACT, ast.Mult: op.MULTIPLY, ast.Div: op.DIVIDE}
_COMPARE = {ast.Gt: (op.IS_MORE, False), ast.GtE: (op.IS_MORE_OR_EQUAL, False)}
_COMPARE_SWAPPED = {ast.Lt: (op.IS_MORE, True), ast.LtE: (op.IS_MORE_OR_EQUAL, True)}


@dataclass(frozen=True, slots=True)
class Token:
    """One step of the stack machine; ``column`` and ``look_back`` only where it reads a column."""

    code: int
    column: str | None = None
    number: float | None = None
    bars: int = 0
    minutes: float = 0.0


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed formula."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, each once, in order of appearance."""
        return tuple(dict.fromkeys(t.column for t in self.tokens if t.column is not None))


def parse(text: str, where: str) -> Expression:
    """Parse a formula.

    Raises
    ------
    ConfigError
        Not an expression of this small language: says which part, and what is allowed.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ConfigError(f"{text!r} is not an expression: {error.msg}", where=where) from None
    tokens: list[Token] = []
    _walk(tree, tokens, text, where)
    depth = deepest = 0
    for token in tokens:
        if token.code <= op.PUSH_AGO:
            depth += 1
        elif token.code == op.CHOOSE:
            depth -= 2
        elif not _is_unary(token.code):
            depth -= 1
        deepest = max(deepest, depth)
    if deepest > op.STACK:
        raise ConfigError(
            f"the formula nests {deepest} values deep; at most {op.STACK} are allowed",
            where=where,
            hint="give a part of it a name of its own among the auxiliary columns",
        )
    return Expression(text, tuple(tokens))


def _is_unary(code: int) -> bool:
    return op.NEGATE <= code <= op.COSINE_TURN or code == op.FLOOR


def _walk(node: ast.expr, tokens: list[Token], text: str, where: str) -> None:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool) and abs(number) <= _LARGEST:
            tokens.append(Token(op.PUSH_NUMBER, number=float(number)))
        case ast.Name(id=name):
            tokens.append(Token(op.PUSH_COLUMN, column=name))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _walk(operand, tokens, text, where)
            tokens.append(Token(op.NEGATE))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
            _walk(left, tokens, text, where)
            _walk(right, tokens, text, where)
            tokens.append(Token(_BINARY[type(operator)]))
        case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in (
            _COMPARE | _COMPARE_SWAPPED
        ):
            code, swapped = (_COMPARE | _COMPARE_SWAPPED)[type(operator)]
            for side in (right, left) if swapped else (left, right):
                _walk(side, tokens, text, where)
            tokens.append(Token(code))
        case ast.Call(func=ast.Name(id="lag"), args=[ast.Name(id=name), ast.Constant(value=int() as bars)]) if (
            type(bars) is int
        ):
            if not 0 < bars <= op.HISTORY:
                raise _refuse(node, text, where, f"lag takes 1 to {op.HISTORY} bars")
            tokens.append(Token(op.PUSH_LAG, column=name, bars=bars))
        case ast.Call(func=ast.Name(id="ago"), args=[ast.Name(id=name), ast.Constant(value=int() as minutes)]) if (
            type(minutes) is int
        ):
            if not 0 < minutes <= op.HISTORY:
                raise _refuse(node, text, where, f"ago takes 1 to {op.HISTORY} minutes")
            tokens.append(Token(op.PUSH_AGO, column=name, minutes=float(minutes)))
        case ast.Call(func=ast.Name(id=name), args=[value]) if name in _ONE:
            _walk(value, tokens, text, where)
            tokens.append(Token(_ONE[name]))
        case ast.Call(func=ast.Name(id=name), args=[first, second]) if name in _TWO:
            _walk(first, tokens, text, where)
            _walk(second, tokens, text, where)
            tokens.append(Token(_TWO[name]))
        case ast.Call(func=ast.Name(id="where"), args=[condition, yes, no]):
            for part in (condition, yes, no):
                _walk(part, tokens, text, where)
            tokens.append(Token(op.CHOOSE))
        case _:
            raise _refuse(node, text, where, f"functions: {', '.join(FUNCTIONS)}")


def _refuse(node: ast.expr, text: str, where: str, hint: str) -> ConfigError:
    part = ast.get_source_segment(text, node) or text
    return ConfigError(f"{part!r} is not part of the formula language", where=where, hint=hint)
