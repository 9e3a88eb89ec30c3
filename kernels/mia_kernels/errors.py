"""The one base of every error that mia-fast raises on purpose."""

from __future__ import annotations


class MiaError(Exception):
    """An error that tells a person what happened, where, what to do and what follows.

    Parameters
    ----------
    what
        What is wrong, with the offending value.
    where
        File and line, table and row, or the argument that holds it.
    hint
        What the reader can do about it.
    then
        What the program does next.
    """

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, then: str | None = None
    ) -> None:
        self.what, self.where, self.hint, self.then = what, where, hint, then
        parts = [f"{where}: {what}" if where else what]
        if hint:
            parts.append(f"Hint: {hint}")
        if then:
            parts.append(f"Next: {then}")
        super().__init__("\n".join(parts))


class StateError(MiaError):
    """A saved state does not belong to this plan, or is damaged."""
