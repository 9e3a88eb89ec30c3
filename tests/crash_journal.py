"""A process that writes the journal until it is killed. Run by test_journal_crash.py, never imported.

Modes: ``beside`` writes and says on request how many rows were accepted;
``load`` writes as fast as it can and notes in a file what was acknowledged; ``hold`` opens the
journal and waits; ``full`` writes until the disk is full (a limit on file sizes), then with room again.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from mia_fast.errors import JournalError
from mia_fast.journal import Journal, Settings
from mia_fast.workspace import Workspace

START = 1_747_144_800_000_000_000


def load(workspace: Workspace, acknowledged: Path, label: str) -> None:
    handle = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    journal = Journal.open(workspace, settings=Settings(interval=0.01, segment_bytes=32_768, batch_rows=256))

    def write(thread: int) -> None:
        number = 0
        while True:
            name = f"{label}-{thread}-{number}"
            row = {
                "timestamp": START + number,
                "trade_id": name,
                "decision": "buy",
                "signal_score": number / 7,
                "regime_probs": {"trend": 0.5, "range": 0.5},
                "context": [float(number)] * 20,
            }
            if number % 2:
                row["run_id"] = "torture"
            sequence = journal.append("decisions", row)
            os.write(handle, f"{sequence} {name}\n".encode())
            number += 1

    threading.Thread(target=write, args=(1,), daemon=True).start()
    write(0)


def hold(workspace: Workspace) -> None:
    with Journal.open(workspace):
        print("open", flush=True)
        time.sleep(60)


def beside(workspace: Workspace) -> None:
    journal = Journal.open(workspace, settings=Settings(interval=0.005, segment_bytes=20_000, batch_rows=256))
    print("open", flush=True)
    number = 0

    def answer() -> None:
        for _ in sys.stdin:
            print(number, flush=True)

    threading.Thread(target=answer, daemon=True).start()
    while True:
        row = {"timestamp": START + number, "trade_id": f"T{number}", "decision": "buy", "signal_score": number / 7}
        journal.append("decisions", row)
        number += 1
        time.sleep(0.0005)


def full(workspace: Workspace) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    journal = Journal.open(workspace, settings=Settings(interval=0.01, pause=lambda _: time.sleep(0.01)))
    row = {"timestamp": START, "trade_id": "", "decision": "buy", "signal_score": 1.0, "context": [1.0] * 500}
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    refused = 0
    for number in range(400):
        try:
            journal.append("decisions", {**row, "trade_id": f"full-{number}"})
            print(f"full-{number}", flush=True)
        except JournalError:
            refused += journal.health() != "ok"
    if not refused:
        sys.exit("the limit was never met, or health() did not show it")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        journal.append("decisions", {**row, "trade_id": "room again"})
        print("room again", flush=True)
    except JournalError:
        pass  # the writer had given up before there was room: the next start brings the rows in
    os._exit(0)


if __name__ == "__main__":
    mode, folder = sys.argv[1], Workspace(Path(sys.argv[2]))
    if mode == "load":
        load(folder, Path(sys.argv[3]), sys.argv[4])
    elif mode == "hold":
        hold(folder)
    elif mode == "beside":
        beside(folder)
    else:
        full(folder)
