"""Who is told: alerts of priority 3 and above, from the journal to every configured channel.

An alert is a row of the journal's table ``alerts`` first. From there a worker takes it, at most once
for what repeats itself, into an outbox on the disk, and a thread per channel sends it, through
apprise, until it has arrived or is too old. Nothing of it runs on the path of a bar, and no failure
of a channel reaches the trading side. See ``docs/decisions/0080-alerts-and-readers.md``.
"""

from __future__ import annotations

from mia_fast.alerts.channels import Channel, masked, open_channels
from mia_fast.alerts.config import AlertsConfig, alerts_config
from mia_fast.alerts.dispatcher import Dispatcher
from mia_fast.alerts.outbox import Alert, Outbox

__all__ = ["Alert", "AlertsConfig", "Channel", "Dispatcher", "Outbox", "alerts_config", "masked", "open_channels"]
