"""The ratios as a picture: how far each is from its goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(figures: dict[str, Any], target: Path) -> None:
    goals = list(reversed(figures["goals"]))
    part = [goal["median"] / goal["factor"] for goal in goals]
    spread = [
        [(goal["median"] - goal["low"]) / goal["factor"] for goal in goals],
        [(goal["high"] - goal["median"]) / goal["factor"] for goal in goals],
    ]
    colours = ["#2a7f62" if goal["reached"] else "#b3541e" for goal in goals]
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(goals) + 1.2), dpi=110)
    bars = axes.barh(
        [f"{goal['case']} / {goal['against']}" for goal in goals], part, xerr=spread, color=colours, capsize=2
    )
    said = [f" {goal['median']:.2f} of {goal['factor']:.2f}" for goal in goals]
    axes.bar_label(bars, said, padding=4, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 2.2 * max([*part, 1.0]))
    axes.set_xlabel("ratio / its goal (log); the line is the goal, whiskers are the slowest and fastest round")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)
