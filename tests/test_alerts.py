"""Alerts: what is told to whom and when, over a real HTTP server on the loopback; no credential in any log."""

from __future__ import annotations

import base64
import http.server
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mia_fast import cli, telemetry
from mia_fast.alerts import Alert, AlertsConfig, Channel, Outbox, channels, masked
from mia_fast.alerts.outbox import FILE, peek
from mia_fast.errors import ConfigError
from mia_fast.journal import Journal, Settings
from mia_fast.workspace import Workspace, shipped

ROOT = Path(__file__).resolve().parents[1]
START = 1_747_144_800_000_000_000
SECOND = 1_000_000_000
QUICK = Settings(interval=0.01)
TOKEN = "s3cr3t-t0k3n-abcdef"
PASSWORD = "hunter-two-8"


class Desk:
    """A real HTTP server that takes apprise's JSON messages; it can be told to refuse them."""

    def __init__(self, port: int = 0) -> None:
        self.got: list[dict[str, Any]] = []
        self.refuse = 0
        desk = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if desk.refuse:
                    self.send_response(desk.refuse)
                else:
                    desk.got.append({**json.loads(body), "path": self.path, "auth": self.headers["Authorization"]})
                    self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.got]

    def url(self) -> str:
        return f"json://trader:{PASSWORD}@127.0.0.1:{self.port}/{TOKEN}/alerts"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def no_masks() -> Iterator[None]:
    yield
    channels._secrets = ()


def configure(workspace: Workspace, *names: str, **changes: object) -> None:
    text = (shipped() / "config" / "alerts.yaml").read_text()
    lines = {line.partition(":")[0]: line for line in text.splitlines() if line[:1].isalpha()}
    for key, value in {"channels": f"[{', '.join(names)}]", **changes}.items():
        assert key in lines
        text = text.replace(lines[key], f"{key}: {value}")
    (workspace.root / "config").mkdir(exist_ok=True)
    (workspace.root / "config" / "alerts.yaml").write_text(text)


def until(done: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def alert(code: str = "RISK_LATCHED", priority: int = 4, **more: object) -> dict[str, object]:
    row = {"timestamp": START, "priority": priority, "code": code, "message": f"{code}: drawdown=0.06"}
    return {**row, "source": "risk", **more}


# ---------------------------------------------------------------- from the journal to a server


def test_three_and_above_go_to_every_channel_and_all_stay_in_the_journal(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Desk()
    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    monkeypatch.setenv("MIA_ALERT_MAIL", other.url())
    configure(workspace, "phone", "mail")
    with Journal.open(workspace, settings=QUICK) as journal:
        for priority in range(1, 6):
            journal.append("alerts", alert(f"CODE_{priority}", priority, message=f"about {'abcde'[priority - 1]}"))
        journal.append("alerts", alert("OF_A_REPLAY", 5, run_id="run-0123456789ab"))
        until(lambda: len(desk.got) == len(other.got) == 3)
    for server in (desk, other):
        assert sorted(server.titles) == ["[3] CODE_3", "[4] CODE_4", "[5] CODE_5"]
        (message,) = (one for one in server.got if "CODE_4" in one["title"])
        assert message["message"] == "about d\nrisk, 2025-05-13T14:00:00.000000Z"
        assert message["type"] == "failure"
        assert message["path"] == f"/{TOKEN}/alerts"
        assert message["auth"].startswith("Basic ")
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal.query("SELECT count(*) FROM alerts").item() == 6
    other.close()
    assert len(desk.got) == 3, "a restart sends nothing again"


def test_risk_s_own_alert_reaches_the_channel(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mia_fast import journal, stop_trading

    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    configure(workspace, "phone")
    assert stop_trading(0.06) is True
    journal.of(workspace).close()  # at once: what is due is still sent
    assert any("RISK" in title or "DRAWDOWN" in title for title in desk.titles), desk.titles


def test_a_dead_channel_holds_up_neither_trading_nor_the_others_and_catches_up(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Desk()
    dead.close()  # nobody listens on its port any more
    monkeypatch.setenv("MIA_ALERT_DEAD", dead.url())
    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    configure(workspace, "dead", "phone", retry_max_seconds=2)
    telemetry.RECORDER.drain()
    with Journal.open(workspace, settings=QUICK) as journal:
        journal.append("alerts", alert())
        until(lambda: len(desk.got) >= 2)
        assert journal.health() == "ok"
        slowest = 0
        for number in range(200):
            began = time.perf_counter_ns()
            journal.append("alerts", alert("BUSY", 3, message=f"BUSY: n={number}"))
            slowest = max(slowest, time.perf_counter_ns() - began)
        assert slowest < 2 * SECOND, "no caller waits for the network"
        assert sorted(desk.titles)[:2] == ["[3] ALERT_CHANNEL_FAILED", "[4] RISK_LATCHED"]
        (said,) = (one["message"] for one in desk.got if "CHANNEL_FAILED" in one["title"])
        assert "channel=dead" in said
        assert TOKEN not in said
        revived = Desk(dead.port)
        until(lambda: revived.got)
        until(lambda: "ALERT_CHANNEL_RESTORED" in journal.query("SELECT code FROM alerts")["code"].to_list())
        text = "".join(message["title"] + message["message"] for message in revived.got)
        assert "RISK_LATCHED" in text
        assert "CHANNEL_FAILED" not in text, "a channel is not told of itself"
        revived.close()


def test_the_outbox_survives_kill_9(workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.refuse = 503
    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    configure(workspace, "phone", retry_max_seconds=2)
    code = f"""
import os, signal, time
from mia_fast.journal import Journal, Settings
from mia_fast.workspace import Workspace
journal = Journal.open(Workspace.current(), settings=Settings(interval=0.01))
row = {{"timestamp": {START}, "priority": 4, "source": "risk"}}
journal.append("alerts", {{**row, "code": "IN_THE_OUTBOX", "message": "a"}})
while not journal._dispatcher.counts().get("phone", {{}}).get("waiting"):
    time.sleep(0.01)
journal._dispatcher._take = lambda: None
journal.append("alerts", {{**row, "code": "IN_THE_JOURNAL_ONLY", "message": "b"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == -9
    assert not desk.got
    assert peek(workspace.data)["phone"]["waiting"] >= 1
    desk.refuse = 0
    with Journal.open(workspace, settings=QUICK):
        until(lambda: all(c in json.dumps(desk.got) for c in ("IN_THE_OUTBOX", "IN_THE_JOURNAL_ONLY")))


def test_a_journal_that_fails_is_told_of_although_it_cannot_write(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mia_fast.errors import JournalError
    from mia_fast.journal import database

    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    configure(workspace, "phone")
    journal = Journal.open(workspace, settings=QUICK)
    with monkeypatch.context() as broken:
        broken.setattr(database.Database, "insert", lambda *_: {}["a programming error"])
        journal.append("alerts", alert("LAST_WORDS", 5))
        until(lambda: "[5] JOURNAL_FAILED" in desk.titles)
        with pytest.raises(JournalError):
            journal.close()
    assert desk.titles.count("[5] JOURNAL_FAILED") == 1
    with Journal.open(workspace, settings=QUICK):
        until(lambda: "[5] LAST_WORDS" in desk.titles)


def test_a_full_disk_under_the_outbox_costs_no_alert(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlite3

    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    configure(workspace, "phone")
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal._dispatcher is not None
        db = journal._dispatcher._outbox._db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way of a full disk
        journal.append("alerts", alert("BIG", 4, message="x" * 100_000))
        until(lambda: "cannot be written" in caplog.text)
        assert journal.health() == "ok"
        db.execute("PRAGMA max_page_count = 1000000")
        until(lambda: "[4] BIG" in desk.titles)
        with pytest.raises(sqlite3.OperationalError):
            db.execute("SELECT * FROM nothing")


def test_an_outbox_that_cannot_be_opened_stops_no_journal(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    configure(workspace, "phone")
    workspace.data.mkdir(parents=True)
    (workspace.data / FILE).write_bytes(b"no database at all" * 500)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal.health() == "ok"
        assert journal.query("SELECT code FROM alerts")["code"].to_list() == ["ALERTS_UNAVAILABLE"]
    assert (workspace.data / FILE).read_bytes().startswith(b"no database"), "nothing is overwritten"


def test_a_channel_without_an_address_is_reported_to_the_others(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    monkeypatch.setenv("MIA_ALERT_WRONG", "nosuchservice://" + TOKEN)
    configure(workspace, "phone", "absent", "wrong")
    with Journal.open(workspace, settings=QUICK) as journal:
        until(lambda: len(desk.got) >= 2)
        assert journal.health() == "ok"
    text = json.dumps(desk.got)
    assert "MIA_ALERT_ABSENT" in text
    assert "MIA_ALERT_WRONG" in text
    assert TOKEN not in "".join(message["message"] for message in desk.got)
    assert peek(workspace.data)["absent"]["waiting"] >= 1, "they wait for the address"


# ---------------------------------------------------------------- credentials


def test_no_log_shows_a_credential(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for logger in ("apprise", "urllib3"):
            logging.getLogger(logger).setLevel(logging.DEBUG)
        channel = Channel("phone", {"MIA_ALERT_PHONE": desk.url()})
        assert channel.send("t", "b", 4) is None
        desk.refuse = 404
        reason = channel.send("t", "b", 4)
        desk.close()
        gone = channel.send("t", "b", 4)
        logging.getLogger("anyone").error("posting to %s failed", desk.url())
        try:
            raise RuntimeError(f"bad address {desk.url()}")
        except RuntimeError:
            logging.getLogger("anyone").exception("so it is")
    desk.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    desk.thread = threading.Thread(target=desk.server.serve_forever, daemon=True)
    desk.thread.start()
    assert "404" in str(reason)
    assert gone
    text = caplog.text + str(reason) + gone
    assert "urllib3" in caplog.text, "the talkative library was listened to"
    assert "posting to" in text
    assert "***" in text
    for secret in (TOKEN, PASSWORD, desk.url()):
        assert secret not in text
    assert TOKEN in desk.got[0]["path"], "it was really used"


@pytest.mark.parametrize(
    ("address", "secrets", "plain"),
    [
        ("tgram://123456789:ABCdef-ghi_jkl/987654321/", ["123456789", "ABCdef-ghi_jkl", "987654321"], ["tgram"]),
        ("discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js", ["4174216298", "JHMHI8qBe7bk2ZwO5U711o3dV_js"], []),
        ("mailtos://me:pa%40ss@smtp.example.com?to=you@example.org", ["pa@ss", "pa%40ss"], ["smtp.example.com"]),
        ("json://127.0.0.1:8080/key-one?token=abc-two", ["key-one", "abc-two"], ["127.0.0.1", "8080"]),
    ],
)
def test_what_may_be_a_credential_is_masked_and_what_is_not_stays(
    address: str, secrets: list[str], plain: list[str]
) -> None:
    channels.hide(address)
    for secret in (*secrets, address):
        assert secret not in masked(f"before {secret} after")
    for word in plain:
        assert masked(f"before {word} after") == f"before {word} after"


def test_the_reason_of_a_transport_that_raises_is_masked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """apprise catches what requests declares; what else comes out of the transport may quote all it was given."""
    import requests

    def broken(_: object, request: requests.PreparedRequest, **__: object) -> None:
        raise RuntimeError(f"cannot frame {request.url} with {request.headers['Authorization']}")

    channel = Channel("phone", {"MIA_ALERT_PHONE": desk.url()})
    monkeypatch.setattr(requests.Session, "send", broken)
    reason = channel.send("t", "b", 4)
    assert reason is not None
    assert reason.startswith("RuntimeError: cannot frame http://127.0.0.1:")
    assert reason.endswith(" with Basic ***==")
    for secret in (TOKEN, PASSWORD, basic("trader", PASSWORD)):
        assert secret not in reason


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("address", "shown", "wanted"),
    [
        ("json://me:abc@127.0.0.1/x", "abc refused, 'abc', me:abc, xabcx", "*** refused, '***', ***, xabcx"),
        ("json://me:7@127.0.0.1/x", "login me:7, or 7 of 17", "login ***, or *** of 17"),
        ("json://127.0.0.1/x?token=q7&format=md", "?token=q7 q7 format=md md", "?*** *** *** md"),
        ("json://me:pa%40ss@127.0.0.1/x", "Authorization: Basic " + basic("me", "pa@ss"), "Authorization: Basic ***="),
        ("json://me:pa%40ss@127.0.0.1/x", "PLAIN AG1lAHBhQHNz, LOGIN cGFAc3M=", "PLAIN ***, LOGIN ***="),
        ("json://me:pa%22%5Css@127.0.0.1/x", json.dumps(['pa"\\ss']) + repr('pa"\\ss'), "[\"***\"]'***'"),
        ("json://me:pa@ss@127.0.0.1/x", "pa%40ss", "***"),
        ("json://me:p%20a%2fs@127.0.0.1/x", "p a/s p%20a/s p%20a%2Fs p+a%2Fs", "*** *** *** ***"),
        ("json://127.0.0.1/ab/cd", "ab cd /ab/cd", "ab cd ***"),
    ],
)
def test_short_and_encoded_credentials_are_masked(address: str, shown: str, wanted: str) -> None:
    channels.hide(address)
    assert masked(shown) == wanted


class _Json(logging.Formatter):
    """As structured loggers do: formats the exception itself, from ``exc_info``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"message": record.getMessage(), "stack": record.stack_info, "text": record.exc_text}
        if record.exc_info:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(fields)


def test_a_formatter_of_another_kind_shows_no_credential_either(capsys: pytest.CaptureFixture[str]) -> None:
    channels.hide(f"json://trader:{PASSWORD}@127.0.0.1/{TOKEN}")
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setFormatter(_Json())
    logger = logging.getLogger("structured")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        for text in (f"no route to {TOKEN}", "no route to the host"):
            try:
                raise RuntimeError(text)
            except RuntimeError:
                logger.exception("so it is")
        logger.error("with the stack", stack_info=True)  # shown with this line, s3cr3t-t0k3n-abcdef
        logger.error("one %s", TOKEN, PASSWORD)  # noqa: PLE1205 - the fault itself
        logger.error("%(name)s", {"other": TOKEN})
        logger.error("%d of %s", _Unprintable(), TOKEN)
    finally:
        logger.removeHandler(handler)
    lines = [json.loads(line) for line in told.getvalue().splitlines()]
    assert "no route to ***" in lines[0]["text"]
    assert "traceback" not in lines[0]
    assert "no route to the host" in lines[1]["traceback"], "what holds no credential stays as it was"
    assert "shown with this line, ***" in lines[2]["stack"]
    assert [line["message"] for line in lines[3:]] == [
        "one %s ('***', '***') (arguments that do not fit)",
        "%(name)s {'other': '***'} (arguments that do not fit)",
        "%d of %s <tuple> (arguments that do not fit)",
    ]
    shown = told.getvalue() + "".join(capsys.readouterr())
    assert TOKEN not in shown
    assert PASSWORD not in shown


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError(TOKEN)


def test_an_address_in_the_configuration_is_refused(workspace: Workspace) -> None:
    configure(workspace, '"json://user:pass@host"')
    with pytest.raises(ConfigError, match="pattern"):
        Journal.open(workspace)
    configure(workspace, "phone", "phone")
    with pytest.raises(ConfigError, match="stands twice"):
        Journal.open(workspace)
    assert not (workspace.data / "mia.duckdb").exists()


# ---------------------------------------------------------------- the command line


def test_the_commands_show_and_try_the_channels(
    workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["mia-fast", "alerts", *arguments])
        status: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
        shown = capsys.readouterr()
        return status or 0, shown.out + shown.err

    assert run("status")[1].startswith("No channel is configured")
    monkeypatch.setenv("MIA_ALERT_PHONE", desk.url())
    configure(workspace, "phone")
    assert run("test") == (0, "phone: sent\n")
    assert desk.titles == ["[1] ALERT_TEST"]
    assert "JSON" in run("status")[1]
    configure(workspace, "phone", "absent")
    status, text = run("test")
    assert status == 1
    assert "MIA_ALERT_ABSENT" in text
    assert TOKEN not in text + run("status")[1]


# ---------------------------------------------------------------- the rules, with a clock of the test's own


def rules(**changes: object) -> AlertsConfig:
    given = {
        "channels": ["a", "b"],
        "replays": False,
        "deduplicate_seconds": 60,
        "per_minute": 6,
        "burst": 2,
        "retry_max_seconds": 30,
        "expire_hours": 1.0,
    }
    return AlertsConfig.model_validate({**given, **changes})


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    one = Outbox(tmp_path / FILE, rules())
    yield one
    one.close()


def made(number: int, message: str = "m", priority: int = 4, code: str = "C") -> Alert:
    return Alert(number, START, priority, code, message, "risk")


def test_what_differs_only_in_numbers_is_sent_once_and_counted(box: Outbox) -> None:
    now = START
    alerts = [made(n, f"drawdown=0.0{n} limit") for n in range(1, 6)]
    assert box.take(alerts, 5, now) == 1
    batch = box.batch("a", now)
    assert batch is not None
    assert "drawdown=0.01" in batch.body
    box.sent(batch)
    assert box.batch("a", now) is None
    assert box.span_seconds(now) == 60
    assert box.take([made(6, "another thing")], 6, now) == 1
    box.sent(box.batch("a", now) or pytest.fail("it is another alert"))
    now += 61 * SECOND
    box.take([], None, now)
    batch = box.batch("a", now)
    assert batch is not None
    assert batch.body.startswith("4 more like this, the last: drawdown=0.05 limit")
    box.sent(batch)
    assert box.span_seconds(now) is None
    assert box.take([made(7, "drawdown=0.09 limit")], 7, now) == 1, "a new span has begun"
    assert box.cursor == 7


def test_the_rate_holds_and_what_waited_goes_as_one_digest_most_urgent_first(box: Outbox) -> None:
    now = START
    words = [chr(97 + n) for n in range(15)]
    box.take([made(n, word, 3 if n < 14 else 5, f"CODE_{n % 2}") for n, word in enumerate(words)], 14, now)
    digest = box.batch("a", now)
    assert digest is not None
    assert digest.title == "[5] 15 alerts"
    assert digest.body.splitlines()[:2] == ["8 x CODE_0", "7 x CODE_1"]
    assert digest.body.index("[5] o") < digest.body.index("[3] a")
    assert "and 5 more" in digest.body
    box.sent(digest)
    sent = 0
    for second in range(60):
        box.take([made(100 + second, chr(97 + second % 26) * (1 + second // 26) + "x")], 100, now + second * SECOND)
        while (batch := box.batch("a", now + second * SECOND)) is not None:
            box.sent(batch)
            sent += 1
    assert sent <= 1 + 6, "the burst that was left, then six a minute"
    assert box.batch("b", now) is not None, "another channel has a rate of its own"


def test_a_failing_channel_is_tried_after_2_4_8_seconds_and_given_up_when_too_old(tmp_path: Path) -> None:
    box = Outbox(tmp_path / FILE, rules(per_minute=600))
    now = START
    box.take([made(1)], 1, now)
    waits = []
    for _ in range(7):
        batch = box.batch("a", now)
        assert batch is not None
        box.failed("a", now)
        wait = box.wait_seconds("a", now)
        assert wait is not None
        waits.append(round(wait))
        assert box.batch("a", now + int((wait - 0.5) * SECOND)) is None
        now += int(wait * SECOND)
    assert waits[:4] == [2, 4, 8, 16]
    assert set(waits[4:]) == {30}
    assert box.batch("b", now) is not None, "the other channel was never held"
    now += 3600 * SECOND
    assert box.batch("a", now) is None
    assert box.counts()["a"] == {"expired": 1}
    assert box.wait_seconds("a", now) is None
    box.close()


def test_a_clock_that_steps_back_neither_holds_nor_hides(box: Outbox) -> None:
    now = START
    box.take([made(1), made(2)], 2, now)
    box.batch("a", now)
    box.failed("a", now)
    back = now - 7200 * SECOND
    batch = box.batch("a", back)
    assert batch is not None, "the rest that was ordered lies in a future that is gone"
    assert (box.wait_seconds("a", back) or 0) <= 30
    box.sent(batch)
    box.take([], None, back)
    batch = box.batch("a", back + 10 * SECOND)
    assert batch is not None
    assert batch.body.startswith("1 more like this"), "its span ended too"


def test_an_outbox_that_is_opened_again_goes_on(tmp_path: Path) -> None:
    one = Outbox(tmp_path / FILE, rules())
    assert one.cursor is None
    one.take([made(8, "first"), made(9, "second")], 9, START)
    batch = one.batch("a", START)
    assert batch is not None
    one.sent(batch)
    one.failed("b", START)
    one.close()
    again = Outbox(tmp_path / FILE, rules())
    assert again.cursor == 9
    rest = again.batch("a", START)
    assert rest is not None
    assert "second" in rest.body
    assert again.batch("b", START + SECOND) is None, "it still rests"
    assert again.batch("b", START + 3 * SECOND) is not None
    assert again.take([made(10, "first")], 10, START + SECOND) == 0, "it still counts as told"
    again.close()
