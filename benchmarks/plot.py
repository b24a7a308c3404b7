"""Pictures: how far each ratio is from its goal, and how cost grows with size."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker


def draw(figures: dict[str, Any], target: Path) -> None:
    goals = list(reversed(figures["goals"]))
    part = [goal["median"] / goal["factor"] for goal in goals]
    spread = [
        [(goal["median"] - goal["low"]) / goal["factor"] for goal in goals],
        [(goal["high"] - goal["median"]) / goal["factor"] for goal in goals],
    ]
    colours = ["#2a7f62" if goal["reached"] else "#b3541e" for goal in goals]
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(goals) + 1.2), dpi=110)
    axes.barh([f"{goal['case']} / {goal['against']}" for goal in goals], part, xerr=spread, color=colours, capsize=2)
    axes.axvline(1, color="black", linewidth=1)
    for row, goal in enumerate(goals):
        beside = 1.06 * max(goal["high"] / goal["factor"], 1.0)
        axes.text(beside, row, f"{goal['median']:.2f} of {goal['factor']:.2f}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 2.4 * max([*part, 1.0]))
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("ratio / its goal (log); the line is the goal, whiskers are the slowest and fastest round")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def draw_curves(figures: dict[str, dict[str, dict[str, float]]], target: Path) -> None:
    """Every figure of a curve beside its first one, so that what is flat looks flat."""
    figure, every = pyplot.subplots(1, len(figures), figsize=(4.2 * len(figures), 4.2), dpi=110, squeeze=False)
    for axes, (curve, rows) in zip(every[0], figures.items(), strict=True):
        for name in next(iter(rows.values())):
            values = [row[name] or nan for row in rows.values()]  # what one alone cannot have is 0
            start = next(value for value in values if value == value)
            axes.plot(list(rows), [value / start for value in values], marker="o", label=name)
        axes.set_title(curve, fontsize=9)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.2), max(high, 5))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.tick_params(labelsize=7)
        axes.tick_params(axis="x", rotation=60)
        axes.legend(fontsize=6)
    every[0][0].set_ylabel("beside the first point (log)", fontsize=8)
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)
