"""The wait-for graph as text: a line for each wait and each deadlock, or a graph for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from codomyrmex.concurrency.cli.views.text import count, visible
from codomyrmex.concurrency.wait_graph import QueueName, WaitEdge, WaitNode, Waits
from codomyrmex.concurrency.waitqueue.deadlocks import describe, describe_queue


def lines(graph: Waits) -> Iterator[str]:
    """One line for each wait, by age; one for each deadlock; and the numbers of both."""
    waits: dict[tuple[int, WaitNode, QueueName], list[WaitEdge]] = {}
    for edge in sorted(graph.edges, key=lambda edge: edge.token):
        waits.setdefault((edge.token, edge.waiter, edge.queue), []).append(edge)
    for (_, waiter, queue), edges in waits.items():
        held = [edge.predecessor.label for edge in edges if edge.holds]
        waiting = [edge.predecessor.label for edge in edges if not edge.holds]
        text = f"{waiter.label} waits for {describe_queue(queue)}"
        text += f", held by {', '.join(held)}" if held else ""
        text += f", behind {', '.join(waiting)}" if waiting else ""
        yield visible(text)
    for cycle in graph.cycles:
        yield f"deadlock: {describe(cycle)}"
    yield f"{count(len(waits), 'wait')}, {count(len(graph.cycles), 'deadlock')}"


def dot(graph: Waits) -> Iterator[str]:
    """The lines of a graph for Graphviz. An edge to a holder is solid, one to a waiter dashed, and one of a deadlock
    red. Agents are boxes."""
    nodes = dict.fromkeys(node for edge in graph.edges for node in (edge.waiter, edge.predecessor))
    closing = {edge for cycle in graph.cycles for edge in cycle}
    yield "digraph waits {"
    for node in nodes:
        shape = "box" if node.kind == "agent" else "ellipse"
        yield f"  {_id(node)} [label={_quoted(node.label)}, shape={shape}];"
    for edge in graph.edges:
        style = "solid" if edge.holds else "dashed"
        color = "red" if edge in closing else "black"
        label = _quoted(f"{edge.queue.kind} {edge.queue.name}")
        yield f"  {_id(edge.waiter)} -> {_id(edge.predecessor)} [label={label}, style={style}, color={color}];"
    yield "}"


def _id(node: WaitNode) -> str:
    return _quoted(f"{node.kind} {node.id}")


def _quoted(text: str) -> str:
    """A text as a quoted string of Graphviz, in which no escape has a meaning."""
    escaped = visible(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
