"""Channels: an address from the environment, a message out, and no credential in any log."""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import os
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from mia_fast.errors import ConfigError

if TYPE_CHECKING:
    import apprise

PREFIX: Final = "MIA_ALERT_"
MASK: Final = "***"
_HOST: Final = re.compile(r"([a-z0-9-]+\.)+[a-z]{2,}|localhost", re.IGNORECASE)
_SHORTEST: Final = 4
"""Masking a shorter part of an address wherever its letters meet would maim every log: a password is then masked as a
whole word and beside its user, another part (a path's piece) only where the path stands whole."""
_SECRET_NAME: Final = re.compile(r"pass|pwd|token|key|secret|auth", re.IGNORECASE)

_secrets: tuple[str, ...] = ()
_secrets_lock: Final = threading.Lock()
_factory: Callable[..., logging.LogRecord] | None = None


class Channel:
    """One channel: ``MIA_ALERT_<NAME>`` opened by apprise. One thread at a time.

    Raises
    ------
    ConfigError
        The address is missing or not one of apprise's, or apprise is not installed.
    """

    def __init__(self, name: str, environment: Mapping[str, str] = os.environ) -> None:
        variable = PREFIX + name.upper()
        address = environment.get(variable, "")
        if not address:
            raise ConfigError(
                f"the channel {name!r} has no address",
                where=variable,
                hint=f"set {variable} to one of apprise's addresses before the start",
                then="its alerts wait in the outbox; the other channels work",
            )
        hide(address)
        try:
            import apprise
        except ImportError as error:
            raise ConfigError(
                "apprise is not installed",
                where=variable,
                hint="install mia-fast with the extra 'alerts'",
                then="alerts wait in the outbox",
            ) from error
        asset = apprise.AppriseAsset(app_id="mia-fast", app_desc="mia-fast", async_mode=False)
        with warnings.catch_warnings():  # at first use it loads all its services, and what they import is not ours
            warnings.simplefilter("ignore", DeprecationWarning)
            opened: Any = apprise.Apprise.instantiate(address, asset=asset, suppress_exceptions=True)
        if opened is None:
            raise ConfigError(
                f"the address of the channel {name!r} is not one of apprise's",
                where=variable,
                hint="see apprise's list of services for its form, such as tgram://token/chat",
                then="its alerts wait in the outbox; the other channels work",
            )
        self.name = name
        self.service = str(opened.service_name or opened.schemas()[0])
        """Where it leads, in a word, without credentials."""
        self._opened: apprise.NotifyBase = opened
        self._kinds = (apprise.NotifyType.INFO, apprise.NotifyType.WARNING, apprise.NotifyType.FAILURE)

    def send(self, title: str, body: str, priority: int) -> str | None:
        """Send one message; None when it has arrived, else why not (masked). Waits on the network, never raises."""
        kind = self._kinds[0 if priority < 3 else 1 if priority == 3 else 2]
        with _Listening() as said:
            try:
                arrived = self._opened.notify(title=title, body=body, notify_type=kind)
            except Exception as error:
                return masked(f"{type(error).__name__}: {error}")
        return None if arrived else masked(said.last or "the service did not take it")


def open_channels(names: list[str]) -> Iterator[Channel | ConfigError]:
    """Each channel in turn, or why it cannot be used."""
    for name in names:
        try:
            yield Channel(name)
        except ConfigError as error:
            yield error


class _Listening(logging.Handler):
    """What apprise warns of in this thread, for it tells its caller only False."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: str | None = None
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.last = record.getMessage()

    def __enter__(self) -> _Listening:
        logging.getLogger("apprise").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("apprise").removeHandler(self)


# -------------------------------------------------------------------- masking


def hide(address: str) -> None:
    """From now on no log record of this process shows the address or what in it may be a credential."""
    global _secrets, _factory  # noqa: PLW0603 - as process-wide as logging is
    with _secrets_lock:
        _secrets = tuple(sorted({*_secrets, *_parts(address)}, key=len, reverse=True))
        if _factory is None:
            _factory = logging.getLogRecordFactory()
            logging.setLogRecordFactory(_masking)


def masked(text: str) -> str:
    """The text without any credential that was hidden."""
    for secret in _secrets:
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return text


def _parts(address: str) -> set[str]:
    """The address whole and in pieces, as libraries may quote it: user, password, token, webhook, chat."""
    split = urlsplit(address)
    credentials, _, host = split.netloc.rpartition("@")
    user, _, password = map(unquote, credentials.partition(":"))
    pieces = [address, address.partition("://")[2], split.path, split.query]
    pieces += [credentials, *credentials.split(":")]
    if not _is_place(host.partition(":")[0]):  # in tgram://token/chat the token stands where a host does
        pieces += [host, *host.split(":")]
    pieces += split.path.split("/")
    named = parse_qsl(split.query)
    pieces += [value for _, value in named] + split.query.split("&")
    pieces += [split.fragment]
    forms = {form for piece in pieces for form in _written(piece) if len(form.strip("/")) >= _SHORTEST}
    secret = [password, *(value for name, value in named if _SECRET_NAME.search(name))]
    forms |= {form for piece in secret if piece for form in (*_written(piece), _base64(piece))}
    if password:  # beside its user as HTTP's Basic and SMTP's PLAIN send them
        forms |= {f"{user}:{password}", _base64(f"{user}:{password}"), _base64(f"\0{user}\0{password}")}
    return forms


def _written(piece: str) -> set[str]:
    """A piece as it stands, plain, quoted for an address, and within JSON or a repr."""
    plain = unquote(piece)
    return {
        piece,
        plain,
        quote(plain),
        quote(plain, safe=""),
        quote_plus(plain),
        json.dumps(plain)[1:-1],
        repr(plain)[1:-1],
    }


def _base64(text: str) -> str:
    """Without the padding, which some leave out."""
    return base64.b64encode(text.encode()).decode().rstrip("=")


def _is_place(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _HOST.fullmatch(host) is not None
    return True


def _masking(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A log record whose text is final and masked, traceback included. Never raises for what it was given.

    An exception whose text holds a credential is kept as text only: a handler's own formatting of it would show it.
    What a handler digs out itself - a frame's local variables, fields of ``extra`` - is not seen here.
    """
    assert _factory is not None
    record = _factory(*args, **kwargs)
    try:
        text = record.getMessage()
        clean = masked(text)
    except Exception:  # arguments that do not fit: logging would print them to stderr as they are
        text, clean = "", masked(f"{_shown(record.msg)} {_shown(record.args)} (arguments that do not fit)")
    if clean != text:
        record.msg, record.args = clean, None
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        record.exc_text = masked(text)
        if record.exc_text != text:
            record.exc_info = None
    if record.stack_info:
        record.stack_info = masked(record.stack_info)
    return record


def _shown(given: object) -> str:
    try:
        return str(given)
    except Exception:
        return f"<{type(given).__name__}>"
