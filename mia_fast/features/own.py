"""A desk's own kernels: a Python function, compiled by Numba, called from the compiled program.

::

    from mia_fast import register_kernel

    @register_kernel("gap", inputs=("open", "close"), look_back=1, warmup=1, missing="pointwise",
                     meaning="open less the close before")
    def gap(x, params, state, out):
        out[0] = x[0, -1] - x[1, -2]

The function is called once per row. ``x`` (inputs, look_back + 1) holds the row's inputs, the
present one last; ``params`` the row's parameters in the order of their declaration; ``state`` what
the function left there at the row before, zeros at first; ``out`` takes one number per output. All
are float64 arrays; ``x``, ``params`` and ``out`` are copies. A value that is left alone, is not
finite, or whose call raised (an index out of bounds does) is missing.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import importlib.util
import inspect
import os
import re
import stat
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
import numpy as np

from mia_fast.errors import ConfigError
from mia_fast.features import kernels
from mia_fast.features.builder import Builder
from mia_fast.features.kernels import FORGETS, HOLDS, KEEPS, POINTWISE, POLICIES, SKIPS, Kernel, Parameter
from mia_fast.features.rows import Column, Rows, Warmup
from mia_kernels import external
from mia_kernels import opcodes as op
from mia_kernels.memory import floats_at, matrix_at

Function = Callable[..., None]
F = TypeVar("F", bound=Function)
Size = int | Callable[[Mapping[str, float]], int]
"""A number, or a function of a row's parameters that gives one."""

"""What becomes of a missing input, by the word that a registration uses."""

_GUARDS: Final = {
    POINTWISE: external.CALL_WHEN_PRESENT,
    HOLDS: external.CALL_WHEN_PRESENT,
    SKIPS: external.CALL_WHEN_PRESENT,
    FORGETS: external.CALL_WHEN_WHOLE,
    KEEPS: external.CALL_ALWAYS,
}
_MOST_STATE: Final = 1 << 20
_FILE_HINT: Final = "see docs/own-features.md"
_COLLECTING: ContextVar[dict[str, Kernel] | None] = ContextVar("own_kernels", default=None)
_njit: Final[Any] = numba.njit
_KEPT: Final[list[Any]] = []
"""Compiled callbacks: a plan made earlier may still call one that was registered anew."""


def register_kernel(
    name: str,
    *,
    inputs: tuple[str, ...],
    missing: str,
    meaning: str,
    look_back: Size = 0,
    state: Size = 0,
    warmup: Size = 0,
    outputs: tuple[str, ...] = (),
    parameters: Mapping[str, Parameter] | None = None,
) -> Callable[[F], F]:
    """Register a function as a kernel that rows of the catalogue may name.

    Parameters
    ----------
    name
        The kernel's name in ``config/feature_sets.yaml``; not one of the built-in ones.
    inputs
        What each input is, in words; a row gives that many columns (1 to 16).
    missing
        What becomes of a missing input: ``pointwise`` (null at a row without its inputs, nothing
        remembered), ``forgets`` (null while one is missing in the window of ``look_back + 1`` rows),
        ``holds`` or ``skips`` (null, the state waits), ``keeps`` (the function is called all the same
        and copes with NaN). For all but ``keeps`` the function is not called at such a row.
    meaning
        One line for the page of definitions.
    look_back
        How many rows before the present one it sees, 0 to 127; a number, or a function of the row's
        parameters.
    state
        How many numbers it carries from row to row.
    warmup
        How many rows pass before its first value, when its inputs have one from the first row on.
    outputs
        Names of its outputs if it has several (at most 8); a row chooses one.
    parameters
        Whole-number parameters with their bounds.

    Returns
    -------
    Callable
        A decorator that compiles the function, registers it and returns it unchanged.

    Raises
    ------
    ConfigError
        The name is taken, a size is out of bounds, or Numba cannot compile the function.
    """
    declared = dict(parameters or {})
    where = f"register_kernel({name!r})"
    _check_declaration(name, inputs, missing, outputs, declared, where)

    def register(function: F) -> F:
        address = _compile(function, where)
        policy = POLICIES[missing]
        parts = (_identity(function), inputs, missing, outputs, *(_identity(size) for size in (look_back, state)))
        kernel = Kernel(
            name,
            meaning,
            inputs,
            policy,
            _lowering(address, declared, policy, look_back, state, outputs, where),
            lambda row: Warmup(rows=_size(warmup, row, "warmup", 0, 1 << 20, where)),
            outputs=outputs,
            parameters=declared,
            digest=hashlib.sha256(repr(parts).encode()).hexdigest()[:16],
        )
        collecting = _COLLECTING.get()
        (kernels.REGISTERED if collecting is None else collecting)[name] = kernel
        return function

    return register


def _check_declaration(
    name: str,
    inputs: tuple[str, ...],
    missing: str,
    outputs: tuple[str, ...],
    parameters: Mapping[str, Parameter],
    where: str,
) -> None:
    if name in kernels.KERNELS or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"the name {name!r} is {'that of a built-in kernel' if name in kernels.KERNELS else 'not a name'}",
            where=where,
            hint="choose another: small letters, digits and underscores",
        )
    if missing not in POLICIES:
        raise ConfigError(f"missing = {missing!r}", where=where, hint=f"one of: {', '.join(POLICIES)}")
    for what, count, fewest, most in (
        ("inputs", len(inputs), 1, external.MOST_INPUTS),
        ("outputs", len(outputs), 0, external.MOST_OUTPUTS),
        ("parameters", len(parameters), 0, external.MOST_PARAMETERS),
    ):
        if not fewest <= count <= most:
            raise ConfigError(f"{count} {what}", where=where, hint=f"{fewest} to {most} {what} are allowed")


def _size(size: Size, row: Column, what: str, low: int, high: int, where: str) -> int:
    found = size if isinstance(size, int) else size(row.params)
    if not isinstance(found, int) or not low <= found <= high:
        raise ConfigError(
            f"{what} = {found!r} for {row.name!r}", where=where, hint=f"a whole number from {low} to {high}"
        )
    return found


def _lowering(
    address: int,
    parameters: Mapping[str, Parameter],
    policy: str,
    look_back: Size,
    state: Size,
    outputs: tuple[str, ...],
    where: str,
) -> Callable[[Builder, Rows], None]:
    def lower(builder: Builder, rows: Rows) -> None:
        by_numbers: dict[tuple[float, ...], list[Column]] = {}
        for row in rows:
            by_numbers.setdefault(tuple(row.params[key] for key in parameters), []).append(row)
        for numbers, chunk in by_numbers.items():
            own = _size(state, chunk[0], "state", 0, _MOST_STATE, where)
            seen = 1 + _size(look_back, chunk[0], "look_back", 0, op.HISTORY - 1, where)
            targets = {row.output: builder.target(row.name) for row in chunk}
            builder.externals.append((tuple(row.name for row in chunk), builder.state))
            builder.emit(
                op.EXTERNAL,
                count=len(outputs) or 1,
                state=1 + own,
                integers=[
                    address,
                    len(chunk[0].inputs),
                    seen,
                    len(numbers),
                    own,
                    _GUARDS[policy],
                    *(builder.slot(source) for source in chunk[0].inputs),
                ],
                floats=list(numbers),
                targets=[targets.get(key, -1 - op.SPARE) for key in outputs or (None,)],
            )

    return lower


def _compile(function: Function, where: str) -> int:
    """The address of a C function that runs ``function`` over given memory; 0 from it means that all went well."""
    inner = _njit(function, error_model="numpy", boundscheck=True, nogil=True)
    word: Any = numba.types.int64

    def call(
        x: int, inputs: int, rows: int, params: int, numbers: int, state: int, own: int, out: int, outputs: int
    ) -> int:
        try:
            inner(
                matrix_at(x, inputs, rows), floats_at(params, numbers), floats_at(state, own), floats_at(out, outputs)
            )
        except Exception:
            return 1
        return 0

    try:
        compiled: Any = numba.cfunc(word(*[word] * external.CALLBACK_ARGUMENTS))(call)
    except numba.core.errors.NumbaError as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = next((line for line in lines if not line.startswith(("Failed in", "During", "- "))), lines[0])
        raise ConfigError(
            f"Numba cannot compile it: {said}",
            where=where,
            hint="it takes (x, params, state, out), all float64 arrays, and may use what Numba's nopython mode knows",
            then="the kernel was not registered",
        ) from error
    _KEPT.append(compiled)
    return int(compiled.address)


def _identity(thing: Any, seen: frozenset[int] = frozenset()) -> str:
    """What decides a function's results, as text: its source, and that of everything it names.

    Numba freezes globals and closures as constants, so their values belong to it.
    """
    function = getattr(thing, "py_func", thing)
    if isinstance(function, np.ndarray):
        return f"{function.dtype}{function.shape}{hashlib.sha256(function.tobytes()).hexdigest()}"
    if not isinstance(function, types.FunctionType):
        named = isinstance(function, types.ModuleType | type)
        return function.__name__ if named else re.sub(r" at 0x[0-9a-f]+", "", repr(function))
    if id(function) in seen:
        return function.__qualname__
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = "\n".join(f"{i.opname} {i.argrepr}" for i in dis.get_instructions(function))
    names = inspect.getclosurevars(function)
    used = {**names.globals, **names.nonlocals}
    inner = [f"{name}={_identity(used[name], seen | {id(function)})}" for name in sorted(used)]
    return "\n".join([text, *inner])


# --- kernels of a workspace ---------------------------------------------------------------------------


def load(path: Path, where: str) -> dict[str, Kernel]:
    """Run a desk's Python file and return the kernels that it registers.

    It is run only because the workspace's catalogue names it (``kernels_from``), once for each
    content; it then holds for that catalogue alone.

    Raises
    ------
    ConfigError
        The file is missing, could have been written by others, fails, or registers nothing.
    """
    try:
        mode = path.stat()
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read ({error})", where=where, hint=_FILE_HINT) from error
    if hasattr(os, "getuid") and (mode.st_uid not in (os.getuid(), 0) or mode.st_mode & stat.S_IWOTH):
        raise ConfigError(
            f"{path.name} is owned by another user, or anyone may write it: it is not run",
            where=str(path),
            hint=f"make it yours and run: chmod o-w {path.name}",
            then="nothing of it was executed",
        )
    return dict(_run(path, content))


@functools.lru_cache(maxsize=32)
def _run(path: Path, content: bytes) -> dict[str, Kernel]:
    name = f"mia_fast_own_{hashlib.sha256(str(path).encode() + content).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    found: dict[str, Kernel] = {}
    # Numba and inspect look a function's module up by its name.
    sys.modules[name] = module
    try:
        with _into(found):
            exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102 - asked for by kernels_from
    except ConfigError:
        raise
    except Exception as error:
        trace = error.__traceback__
        line = 0
        while trace is not None:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
            trace = trace.tb_next
        line = error.lineno or 0 if isinstance(error, SyntaxError) else line
        raise ConfigError(
            f"fails as it is run: {type(error).__name__}: {error}", where=f"{path}:{line}", hint=_FILE_HINT
        ) from error
    if not found:
        raise ConfigError("registers no kernel", where=str(path), hint="decorate a function with @register_kernel")
    return found


@contextlib.contextmanager
def _into(found: dict[str, Kernel]) -> Iterator[None]:
    token = _COLLECTING.set(found)
    try:
        yield
    finally:
        _COLLECTING.reset(token)
