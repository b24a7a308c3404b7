"""The number of this process among pytest's workers, for what a machine has once: networks, addresses, ports."""

from __future__ import annotations

import os

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
