# SPDX-License-Identifier: Apache-2.0
"""Plots on a dark canvas: axes in one style, their words and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes

from brainseg_bids.reports.canvas import DPI, FAINT, FONT, INK, LINE, PAGE, Canvas
from brainseg_bids.reports.slices import MARGIN_PX, WIDTH_PX


def axes_on(canvas: Canvas, left: float, top: float, width: float, height: float) -> Axes:
    """Axes for a dark canvas; pixels from its upper left corner."""
    page = canvas.figure.get_figwidth() * DPI
    axes = canvas.figure.add_axes(
        (left / page, 1 - (top + height) / canvas.height, width / page, height / canvas.height),
        facecolor=PAGE,
        zorder=2,  # above tiles, whose canvas is as wide as the page
    )
    axes.tick_params(colors=INK, labelsize=9, length=3, width=0.8)
    for name, spine in axes.spines.items():
        spine.set_color(LINE)
        spine.set_visible(name in ("left", "bottom"))
    return axes


def panels(canvas: Canvas, top: float, n: int, *, pitch_px: float, plot_px: float) -> list[Axes]:
    """Axes in rows of four over the canvas's width; rows are ``pitch_px`` apart."""
    pitch = (WIDTH_PX - MARGIN_PX) / 4
    return [
        axes_on(
            canvas,
            MARGIN_PX + number % 4 * pitch + 22,
            top + number // 4 * pitch_px,
            pitch - 46,
            plot_px,
        )
        for number in range(n)
    ]


def name_axes(axes: Axes, *, title: str = "", note: str = "", x: str = "", y: str = "") -> None:
    """Words about axes: what they show, a faint note at the right, and the axes' units."""
    axes.text(
        0, 1.03, title, transform=axes.transAxes, color=INK, fontsize=10.5, weight="bold",
        va="bottom", **FONT,
    )  # fmt: skip
    axes.text(
        1, 1.03, note, transform=axes.transAxes, color=FAINT, fontsize=9, ha="right",
        va="bottom", **FONT,
    )  # fmt: skip
    axes.set_xlabel(x, color=FAINT, fontsize=9, labelpad=2, **FONT)
    axes.set_ylabel(y, color=FAINT, fontsize=9, labelpad=3, **FONT)


def no_data(axes: Axes, words: str) -> None:
    """Say that there is nothing to draw."""
    axes.set(xticks=[], yticks=[])
    axes.text(
        0.5, 0.5, words, transform=axes.transAxes, color=FAINT, fontsize=10, ha="center",
        va="center", **FONT,
    )  # fmt: skip


def key(axes: Axes, entries: Mapping[str, Mapping], **options) -> None:
    """A legend without a frame: what it says to how its line is drawn."""
    handles = [axes.plot([], [], **style)[0] for style in entries.values()]
    font = {"size": 9, "family": FONT["family"]}
    legend = axes.legend(
        handles, list(entries), frameon=False, labelcolor=INK, prop=font, **options
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def color_bar(axes: Axes, colors: str, largest: float, words: Callable[[float], str]) -> None:
    """A bar of the colours from ``-largest`` to ``largest``, with words at five places."""
    ramp = np.linspace(-largest, largest, 256)[:, None]
    axes.imshow(ramp, origin="lower", aspect="auto", cmap=colors, extent=(0, 1, -largest, largest))
    ticks = np.linspace(-largest, largest, 5)
    axes.yaxis.tick_right()
    axes.set_yticks(ticks, [words(tick) for tick in ticks], **FONT)
    axes.set_xticks([])


def log_factor(value: float) -> str:
    """A logarithm as the factor that it is."""
    return f"{np.exp(value):.2f}"


def draw_together(
    axes: Axes,
    curves: Mapping[str, tuple[np.ndarray, str]],
    edges: np.ndarray,
    *,
    x: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Histograms over each other, all of one area.

    Parameters
    ----------
    curves : mapping of str to ((n,) float, str)
        Densities and colours by name.
    edges : (n + 1,) float
    x : str
        Name of the axis.
    limits : (float, float), optional
        Of the axis; the first and the last edge if not given.
    """
    name_axes(axes, title="All together", note="equal areas", x=x)
    if not curves:
        no_data(axes, "nothing was measured")
        return
    for curve, color in curves.values():
        axes.stairs(curve, edges, color=color, linewidth=1.6)
    axes.set_xlim(limits or (edges[0], edges[-1]))
    axes.set_ylim(0, 1.6 * max(curve.max() for curve, _ in curves.values()))  # room for the key
    axes.set_yticks([])
    key(
        axes,
        {name: {"color": color, "linewidth": 2} for name, (_, color) in curves.items()},
        loc="upper right",
        ncols=2,
        columnspacing=1.0,
        handlelength=1.2,
        labelspacing=0.2,
        borderaxespad=0.1,
    )
