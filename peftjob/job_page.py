"""A job as a notebook shows it: state, progress, loss curve. HTML without scripts. Pure."""

from collections.abc import Sequence
from html import escape

from peftjob.progress import Progress, Result, latest
from peftjob.terminal import duration, numbers, summary

WIDTH, HEIGHT, MARGIN = 480, 120, 34
COLOURS = {"loss": "#1f77b4", "held-out": "#d62728"}


def render(
    name: str,
    state: str,
    history: Sequence[Progress],
    result: Result | None,
    *,
    reason: str | None = None,
) -> str:
    """HTML of a job that is in `state`, with what it has reported so far."""
    parts = [f"<b>{escape(name)}</b> {escape(state)}"]
    if reason:
        parts.append(f"<div style='color:#d62728'>{escape(reason)}</div>")
    record = latest(history)
    if record is not None:
        done = record.step / max(1, record.total_steps)
        parts.append(f"<div><progress value='{done:.4f}' style='width:{WIDTH}px'></progress></div>")
        texts = numbers(record)
        if result is None and record.eta_s is not None:
            texts.append(f"{duration(record.eta_s)} left")
        parts.append(f"<div style='font-size:smaller'>{escape(' · '.join(texts))}</div>")
        parts.append(_curve(history))
    if result is not None:
        rows = [*summary(history, result), ("adapter", result.adapter)]
        cells = "".join(
            f"<tr><td style='white-space:nowrap'>{escape(key)}</td>"
            f"<td style='text-align:left;overflow-wrap:anywhere'>{escape(text)}</td></tr>"
            for key, text in rows
        )
        parts.append(f"<table>{cells}</table>")
    return "<div>" + "".join(parts) + "</div>"


def _curve(history: Sequence[Progress]) -> str:
    """Loss over steps as SVG; empty below two points."""
    lines = {
        "loss": [(r.step, r.loss) for r in history if r.loss is not None],
        "held-out": [(r.step, r.eval_loss) for r in history if r.eval_loss is not None],
    }
    every = [value for points in lines.values() for _, value in points]
    if len(lines["loss"]) < 2:
        return ""
    low, high = min(every), max(every)
    last = max(step for points in lines.values() for step, _ in points)

    def place(step: int, value: float) -> str:
        x = MARGIN + (WIDTH - MARGIN) * step / max(1, last)
        y = 6 + (HEIGHT - 24) * (high - value) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    drawn = "".join(
        f"<polyline fill='none' stroke-width='1.5' stroke='{COLOURS[name]}' "
        f"points='{' '.join(place(*point) for point in points)}'/>"
        for name, points in lines.items()
        if points
    )
    legend = "".join(
        f"<tspan dx='8' fill='{COLOURS[name]}'>{name}</tspan>"
        for name, points in lines.items()
        if points
    )
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT}' font-size='10' role='img' "
        f"aria-label='loss over steps'>{drawn}"
        f"<text x='0' y='12' fill='gray'>{high:.2f}</text>"
        f"<text x='0' y='{HEIGHT - 16}' fill='gray'>{low:.2f}</text>"
        f"<text x='{MARGIN}' y='{HEIGHT - 4}' fill='gray'>0{legend}</text>"
        f"<text x='{WIDTH}' y='{HEIGHT - 4}' fill='gray' text-anchor='end'>step {last}</text>"
        "</svg>"
    )
