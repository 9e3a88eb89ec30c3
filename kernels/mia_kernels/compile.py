"""How kernels are compiled and where the machine code is kept.

Numba's own cache keys a function by its own source file only, so it serves *stale machine code*
when a helper or a constant in another file changes (numba issue 1833). All kernels therefore share
one folder that is named by a digest of every kernel source and the Numba version: any edit moves
the folder. The key has no path in it, so every checkout, virtual environment and read-only install
with the same sources shares one compilation.

``MIA_KERNEL_CACHE`` moves the cache; otherwise it is the user's cache directory, or a private
temporary one when that cannot be written, and then a warning in the log says so.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching
from platformdirs import user_cache_path

F = TypeVar("F", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)
_SOURCES = Path(__file__).resolve().parent


@functools.cache
def source_digest() -> str:
    """Hex digest (16 characters) of all kernel sources and of the compiler's version."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_SOURCES.rglob("*.py")):
        digest.update(path.relative_to(_SOURCES).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def cache_root() -> Path:
    """The writable folder below which compiled kernels are kept, one sub-folder per digest."""
    named = os.environ.get("MIA_KERNEL_CACHE")
    candidates = [Path(named).expanduser()] if named else [user_cache_path("mia-fast") / "kernels"]
    uid = os.getuid() if hasattr(os, "getuid") else "user"
    candidates.append(Path(tempfile.gettempdir()) / f"mia-fast-kernels-{uid}")
    wanted = candidates[0]
    for candidate in candidates:
        try:
            # Loading a cache entry executes it: the folder must be this user's alone.
            candidate.mkdir(parents=True, exist_ok=True, mode=0o700)
            if hasattr(os, "getuid") and candidate.stat().st_uid != os.getuid():
                continue
            with tempfile.TemporaryFile(dir=candidate):
                if candidate is not wanted:
                    _LOG.warning("compiled kernels are kept in %s: %s is not this user's to write", candidate, wanted)
                return candidate
        except OSError:
            continue
    private = Path(tempfile.mkdtemp(prefix="mia-fast-kernels-"))
    _LOG.warning(
        "compiled kernels are kept in %s for this process only: %s is not this user's to write (set MIA_KERNEL_CACHE)",
        private,
        wanted,
    )
    return private


def cache_dir() -> Path:
    """The folder that holds the machine code of exactly these sources."""
    return cache_root() / source_digest()


class _DigestLocator(caching._CacheLocator):  # type: ignore[misc, unused-ignore]
    """Places a kernel's cache files by content digest instead of by source path."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self._py_file = py_file  # read by Numba's own warning
        self._line = py_func.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_dir())

    def get_source_stamp(self) -> str:
        return source_digest()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _DigestLocator:
        return cls(py_func, py_file)


class _KernelCacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc, unused-ignore]
    _locator_classes = [_DigestLocator]  # noqa: RUF012 - Numba's own attribute


class _KernelCache(caching.FunctionCache):  # type: ignore[misc, unused-ignore]
    _impl_class = _KernelCacheImpl


def kernel(function: F) -> F:
    """Compile ``function`` as a kernel: strict IEEE arithmetic, no GIL, cached by source digest.

    ``fastmath`` stays off: it brought no speed and different bits on each CPU.
    ``error_model="numpy"`` makes a division by zero an infinity or NaN instead of a branch.
    """
    dispatcher = numba.njit(function, error_model="numpy", nogil=True)
    dispatcher._cache = _KernelCache(function)  # type: ignore[no-untyped-call, unused-ignore]
    return cast(F, dispatcher)


def inlined(function: F) -> F:
    """Compile a small helper that is inlined into its caller, so that loops around it vectorise."""
    return cast(F, numba.njit(function, error_model="numpy", nogil=True, inline="always"))
