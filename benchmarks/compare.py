"""Two runs beside one another. Rates drift from machine to machine; the ratios to goals do not."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

Figures = dict[str, Any]


def compared(earlier: Figures, now: Figures) -> Table:
    table = Table(title=f"Since {earlier['at']}", title_justify="left", padding=(0, 1, 0, 0))
    for column in ("case", "against"):
        table.add_column(column, no_wrap=True)
    for column in ("goal", "then", "now", "change"):
        table.add_column(column, justify="right")
    before = {_key(goal): goal for goal in earlier["goals"]}
    for goal in now["goals"]:
        then = before.get(_key(goal))
        change = f"{goal['median'] / then['median'] - 1:+.0%}" if then else "new"
        was = f"{then['median']:.2f}" if then else "-"
        table.add_row(goal["case"], goal["against"], f"≥ {goal['factor']:.2f}", was, f"{goal['median']:.2f}", change)
    return table


def _key(goal: Figures) -> tuple[str, str]:
    return goal["case"], json.dumps(goal["base"])
