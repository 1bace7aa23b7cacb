"""The loss curve as a picture: training and held-out loss against steps.

The same records give the same bytes: nothing of the clock, of this machine or of the user's own
settings of matplotlib is in it. matplotlib is loaded only now, when the training is over.
"""

import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjob.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("llm_trainer")

FILE = "loss.png"
SIZE_INCHES = (8.0, 4.5)
DPI = 150
SMOOTHED_FROM = 40
"""Points of training loss from which a smoothed line is drawn over them."""
_BLUE, _ORANGE, _GREY = "#2f6fab", "#d9730d", "#6b7280"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # Comes with matplotlib.
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b6bcc6",
    "axes.labelcolor": _GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.8,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
Points = Sequence[tuple[int, float]]


def save(folders: Iterable[Path], records: Sequence[Progress], *, title: str) -> str | None:
    """Draw the curve into each folder; its file's name, or None where there is none."""
    picture = draw(records, title=title)
    if picture is None:
        return None
    for folder in folders:
        (folder / FILE).write_bytes(picture)
    return FILE


def draw(records: Sequence[Progress], *, title: str) -> bytes | None:
    """The curve as a PNG; None where there is nothing to draw or nothing to draw with."""
    trained = _finite((r.step, r.loss) for r in records)
    held_out = _finite((r.step, r.eval_loss) for r in records)
    if not trained and not held_out:
        return None
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        log.warning("no loss curve is drawn: %s; install peftjob[train]", err)
        return None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_lines(axes, trained, held_out)
        _label(axes, records, title)
        file = BytesIO()
        # Without its default metadata: the version of matplotlib.
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _finite(points: Iterable[tuple[int, float | None]]) -> Points:
    return [(step, y) for step, y in points if y is not None and math.isfinite(y)]


def _draw_lines(axes: "Axes", trained: Points, held_out: Points) -> None:
    ends: list[tuple[float, str, str]] = []
    if trained:
        steps, losses = zip(*trained, strict=True)
        crowded = len(trained) >= SMOOTHED_FROM
        axes.plot(
            steps,
            losses,
            color=_BLUE,
            linewidth=1.0 if crowded else 2.0,
            alpha=0.3 if crowded else 1.0,
            marker="" if len(trained) > 1 else "o",
        )
        if crowded:
            losses = tuple(smoothed(losses))
            axes.plot(steps, losses, color=_BLUE, linewidth=2.0)
        ends.append((losses[-1], f"training\n{losses[-1]:.3f}", _BLUE))
    if held_out:
        steps, losses = zip(*held_out, strict=True)
        few = len(held_out) <= SMOOTHED_FROM
        axes.plot(
            steps,
            losses,
            color=_ORANGE,
            linewidth=2.0,
            marker="o" if few else "",
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.8,
        )
        ends.append((losses[-1], f"held-out\n{losses[-1]:.3f}", _ORANGE))
        _mark_lowest(axes, held_out)
    _name_ends(axes, ends, right=max(step for step, _ in [*trained, *held_out]))


def _mark_lowest(axes: "Axes", held_out: Points) -> None:
    """Where the model was best on the held-out rows, if it got worse after that."""
    step, lowest = min(held_out, key=lambda point: point[1])
    if step == held_out[-1][0]:
        return
    axes.plot([step], [lowest], "o", markersize=10, markerfacecolor="none", color=_ORANGE)
    axes.annotate(
        f"lowest: {lowest:.3f} at step {step:,}",
        (step, lowest),
        xytext=(0, 12),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=_ORANGE,
        fontsize=9,
    )


def _name_ends(axes: "Axes", ends: list[tuple[float, str, str]], *, right: int) -> None:
    """Name each line where it ends, which a legend would make the eye look up."""
    axes.margins(x=0.02, y=0.12)
    bottom, top = axes.get_ylim()
    # Two lines of text need about a tenth of the height between them.
    least = (top - bottom) * 0.1
    ends = sorted(ends)
    heights = [y for y, _, _ in ends]
    if len(heights) == 2 and heights[1] - heights[0] < least:
        middle = sum(heights) / 2
        heights = [middle - least / 2, middle + least / 2]
    for height, (_, text, color) in zip(heights, ends, strict=True):
        axes.annotate(
            text,
            (right, height),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
            linespacing=1.2,
            annotation_clip=False,
        )


def _label(axes: "Axes", records: Sequence[Progress], title: str) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    last = records[-1]
    axes.set_title(title, loc="left", fontweight="bold", fontsize=12, pad=12)
    axes.set_xlabel(f"step (epoch {last.epoch:.3g} at step {last.step:,})")
    axes.set_ylabel("mean loss (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(length=0)
    axes.grid(axis="x", visible=False)


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each point and its neighbours, a thirtieth of all on either side.

    At the start, where the loss falls fast, only as many as there are on both sides: a mean of
    later points alone would be too low. At the end it is flat, and the mean of the last ones.
    """
    sums = [0.0, *itertools.accumulate(losses)]
    reach, last = max(1, len(losses) // 30), len(losses) - 1
    out = []
    for i in range(len(losses)):
        begin = max(0, i - reach)
        end = min(last, 2 * i, i + reach)
        out.append((sums[end + 1] - sums[begin]) / (end + 1 - begin))
    return out
