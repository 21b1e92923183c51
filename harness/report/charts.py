"""The pictures of a report: each takes a run's reading and gives an SVG, or None where there is nothing to draw.

Matplotlib draws them, text stays text, and the same reading gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.compare import Comparison
from harness.device_ledger import device_samples
from harness.ledger import ADDITIVE, TRAINING_STATED, Account, Term
from harness.measure import sent_ns
from harness.predict.overhead import cuda_total
from harness.predict.settings import device_gpu
from harness.report import bars
from harness.report.finetune import MOMENT_WORDS
from harness.report.reading import Reading
from harness.report.timeline import points
from harness.report.words import term_words
from harness.spread import TermSpread, spreads
from harness.units import GIB, MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 9.0
_SLICES = 400  # of a line over time: the highest of each is drawn
_GREY, _LIMIT, _BEYOND = "#7a8088", "#c2410c", "#d55e00"
# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS: dict[str, str] = {
    Term.WEIGHTS: "#0072b2", Term.RUNTIME_AT_INIT: "#8c96a0", Term.NON_TORCH_INCREASE: "#56b4e9",
    Term.ACTIVATION_PEAK: "#e69f00", Term.CUDA_GRAPHS: "#cc79a7", Term.KV_AVAILABLE: "#009e73",
    Term.OTHER_PROCESSES: "#5b5b5b", Term.ALLOCATOR_SLACK: "#b8bec5", Term.UNATTRIBUTED: "#d6dade",
    Term.MASTER_WEIGHTS: "#4c9bd0", Term.ADAPTERS: "#cc79a7", Term.OPTIMIZER: "#009e73",
    Term.GRADIENTS: "#d55e00", Term.ACTIVATIONS: "#e69f00", Term.LOGITS: "#f0c75e", Term.WORKSPACE: "#56b4e9",
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "loadfit", "font.family": "sans-serif", "font.size": 9.0,
    "text.parse_math": False, "text.color": _GREY, "axes.edgecolor": _GREY, "axes.labelcolor": _GREY,
    "xtick.color": _GREY, "ytick.color": _GREY, "axes.spines.top": False, "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}  # fmt: skip

# A bar of memory: its words, and each piece: its term, its bytes, whether it is taken (else set aside and empty).
Piece = tuple[str, int, bool]
Bar = tuple[str, list[Piece]]


def memory(reading: Reading) -> str | None:
    """Where the device's memory goes: idle, at the load's peak, and what the load wants, against what there is."""
    moments = list(_training_bars(reading) if reading.scenario.kind == "finetune" else _serving_bars(reading))
    if not moments:
        return None
    gpu = device_gpu(reading.scenario)
    total = cuda_total(gpu).bytes if gpu else None
    return _svg(lambda: _memory(moments, total), "Memory by term")


def load(reading: Reading) -> str | None:
    """Blocks, requests and preemptions over the load."""
    found, usable, unit = points(reading)
    return _svg(lambda: _load(found, usable, unit), "Blocks, requests and preemptions over the load") if found else None


def gpus(reading: Reading) -> str | None:
    """What each GPU held over the run, and the marks."""
    frame = reading.record.tables.get("devices")
    if frame is None or not len(frame):
        return None
    return _svg(lambda: _gpus(reading, int(frame["time_ns"].min())), "GPU memory over the run")


def waits(reading: Reading) -> str | None:
    """The share of requests that had their first token, and their last, after so long; where time was real."""
    requests = reading.record.tables.get("requests")
    if requests is None or not any(f.figure == "ttft_mean_s" and f.measured for f in reading.comparison.figures):
        return None
    done = requests[requests["status"] == "ok"].dropna(subset=["sent_ns", "first_ns", "end_ns"])
    done = done.assign(sent_ns=sent_ns(reading.record, done))
    return _svg(lambda: _waits(done), "Share of requests answered by time") if len(done) > 1 else None


def spread(repeats: Mapping[int, Comparison]) -> str | None:
    """What each of ``repeats`` measured of each term less what was predicted, in the predicted interval."""
    terms = [t for t in spreads(repeats).terms if t.phase == "load" and t.predicted is not None and t.measured.told]
    return _svg(lambda: _spread(terms, repeats), "Measured less predicted, by term and repeat") if terms else None


CHARTS: dict[str, Callable[[Reading], str | None]] = {"memory": memory, "load": load, "gpus": gpus, "waits": waits}


# -- bars of memory ------------------------------------------------------------------------------------


def _serving_bars(reading: Reading) -> Iterator[Bar]:
    predicted, measured = reading.record.prediction, reading.measured
    yield from _idle_and_load(predicted, "predicted")
    if measured is not None and reading.record.mode in ("measured", "imported"):
        yield from _idle_and_load(measured, "measured")
    needed, block = predicted.load.peak_blocks_needed, predicted.kv.bytes_per_block
    pool = predicted.ledger.bytes_of(Term.KV_AVAILABLE)
    if needed is not None and block is not None and pool is not None and needed * block > pool:
        pieces = [p for p in _pieces(predicted, "idle") if p[0] != Term.KV_AVAILABLE]
        yield "what the load wants", [*pieces, (Term.KV_AVAILABLE, pool, True), ("beyond", needed * block - pool, True)]


def _idle_and_load(account: Account, side: str) -> Iterator[Bar]:
    idle = _pieces(account, "idle")
    if not idle:
        return
    yield f"idle, {side}", idle
    used = account.ledger.bytes_of(Term.KV_USED)
    if used is not None:
        held = _pieces(account, "load")
        if account.ledger.bytes_of(Term.WEIGHTS, "load") is None:  # a prediction tells what comes beside the idle terms
            held = [*idle, *held]
        fixed = [p for p in held if p[0] != Term.KV_AVAILABLE]
        rest = (account.ledger.bytes_of(Term.KV_AVAILABLE) or used) - used
        yield f"load's peak, {side}", [*fixed, (Term.KV_AVAILABLE, used, True), (Term.KV_AVAILABLE, rest, False)]


def _pieces(account: Account, phase: str) -> list[Piece]:
    """The engine's terms, the pool last: it is set aside and empty."""
    order = [t for t in ADDITIVE if t != Term.KV_AVAILABLE] + [Term.KV_AVAILABLE]
    sizes = [(str(t), account.ledger.bytes_of(t, phase)) for t in order]
    return [(t, size, t != Term.KV_AVAILABLE) for t, size in sizes if size]


def _training_bars(reading: Reading) -> Iterator[Bar]:
    ledger = reading.record.prediction.ledger
    for moment, words in MOMENT_WORDS.items():
        sizes = [(str(t), ledger.bytes_of(t, moment)) for t in TRAINING_STATED]
        if pieces := [(t, size, True) for t, size in sizes if size]:
            yield words, pieces


def _memory(moments: Sequence[Bar], total: int | None) -> Figure:
    longest = max(sum(size for _, size, _ in pieces) for _, pieces in moments)
    reach = max(longest, total or 0) / GIB
    figure, axes = _figure(0.9 + 0.42 * len(moments))
    seen: dict[str, Any] = {}
    for row, (_, pieces) in enumerate(moments):
        left = 0.0
        for term, size, taken in pieces:
            colour, gib = _COLOURS.get(term, _BEYOND), size / GIB
            bar = axes.barh(
                row, gib, left=left, height=0.62, color=colour if taken else "none", edgecolor=colour, linewidth=0.8,
                hatch=None if taken else "////",
            )  # fmt: skip
            if taken or term not in seen:
                seen[term] = bar
            if gib > 0.06 * reach:
                axes.text(left + gib / 2, row, f"{gib:,.1f}", ha="center", va="center", size=8,
                          color="white" if taken else _GREY, weight="bold")  # fmt: skip
            left += gib
    if total is not None:
        axes.axvline(total / GIB, color=_LIMIT, linestyle="--", linewidth=1.2)
        words = f"the device: {total / GIB:,.1f} GiB "
        axes.text(total / GIB, -0.62, words, ha="right", va="bottom", color=_LIMIT, size=8)
    axes.set_yticks(range(len(moments)), [words for words, _ in moments])
    axes.set_ylim(len(moments) - 0.5, -0.7)
    axes.set_xlim(0, reach * 1.02)
    empty = any(not taken for _, pieces in moments for _, _, taken in pieces)
    axes.set_xlabel("GiB on the fullest device" + ("; hatched: set aside, not yet used" if empty else ""))
    terms = ["beyond the pool" if t == "beyond" else term_words(t) for t in seen]
    figure.legend(seen.values(), terms, loc="outside lower center", ncols=5, frameon=False, labelcolor=_GREY)
    return figure


def _spread(terms: Sequence[TermSpread], repeats: Mapping[int, Comparison]) -> Figure:
    figure, axes = _figure(0.8 + 0.32 * len(terms))
    axes.axvline(0, color=_GREY, linewidth=0.8)
    for row, t in enumerate(terms):
        assert t.predicted is not None
        if t.low is not None and t.high is not None:
            span = (t.high - t.low) / MIB
            axes.barh(row, span, left=(t.low - t.predicted) / MIB, height=0.5, color=_GREY, alpha=0.25)
        for n, comparison in repeats.items():
            found = next((r for r in comparison.terms if (r.term, r.phase) == (t.term, t.phase)), None)
            if found is not None and found.measured is not None:
                colour = _LIMIT if n in (t.outside or ()) else _COLOURS[Term.WEIGHTS]
                axes.plot((found.measured - t.predicted) / MIB, row, "o", markersize=5, color=colour, alpha=0.7)
    axes.set_yticks(range(len(terms)), [term_words(t.term) for t in terms])
    axes.set_ylim(len(terms) - 0.5, -0.5)
    axes.set_xlabel("MiB measured less predicted, under load; grey: low to high as predicted; a dot for each repeat")
    return figure


# -- lines over time -----------------------------------------------------------------------------------


def _load(found: Sequence[tuple[float, float, float, float, float]], usable: int | None, unit: str) -> Figure:
    end = found[-1][0] or 1
    blocks, running, waiting, preemptions = (
        bars.resample([(p[0] / end, p[column]) for p in found], _SLICES) for column in range(1, 5)
    )
    when = [end * n / _SLICES for n in range(_SLICES)]
    figure, (pool, requests, ended) = _figure(4.4, rows=3, ratios=(3, 2, 1))
    pool.fill_between(when, blocks, step="post", color=_COLOURS[Term.KV_AVAILABLE], alpha=0.35, linewidth=0)
    pool.step(when, blocks, where="post", color=_COLOURS[Term.KV_AVAILABLE], linewidth=1)
    if usable:
        pool.axhline(usable, color=_LIMIT, linestyle="--", linewidth=1.2)
        pool.annotate(
            f"all {usable:,} blocks", (end, usable), (0, 3), textcoords="offset points", ha="right", va="bottom",
            color=_LIMIT, size=8,
        )  # fmt: skip
    pool.set_ylabel("blocks used")
    pool.set_ylim(0, 1.12 * max(usable or 0, *blocks, 1))
    for values, words, colour in ((running, "running", "#0072b2"), (waiting, "waiting", "#e69f00")):
        requests.step(when, values, where="post", color=colour, linewidth=1.2, label=words)
    requests.legend(frameon=False, labelcolor=_GREY, loc="upper right", ncols=2)
    requests.set_ylim(0, 1.3 * max(*running, *waiting, 1))
    requests.set_ylabel("requests")
    ended.fill_between(when, preemptions, step="post", color=_BEYOND, alpha=0.5, linewidth=0)
    ended.set_ylabel("preempted")
    ended.set_ylim(0, max(*preemptions, 1))
    ended.set_xlabel("seconds" if unit == "s" else unit)
    ended.set_xlim(0, end)
    return figure


def _gpus(reading: Reading, begin: int) -> Figure:
    figure, axes = _figure(2.8)
    top = 0.0
    for n, gpu in enumerate(reading.record.gpus):
        samples = device_samples(reading.record, gpu["uuid"])
        if not len(samples):
            continue
        span = (int(samples["time_ns"].max()) - begin) / 1e9 or 1
        held = zip((samples["time_ns"] - begin) / 1e9 / span, samples["used_bytes"] / GIB, strict=True)
        when = [span * i / _SLICES for i in range(_SLICES)]
        axes.step(when, bars.resample(list(held), _SLICES), where="post", linewidth=1.2, label=f"GPU {n}")
        top = max(top, float(samples["total_bytes"].iloc[-1]) / GIB)
    axes.axhline(top, color=_LIMIT, linestyle="--", linewidth=1.2)
    shown: dict[int, str] = {}  # of marks at one moment the last
    for mark, at in reading.record.marks.items():
        if at >= begin:
            shown[at] = f" {mark.replace('_', ' ')}"
    for at, words in shown.items():
        axes.axvline((at - begin) / 1e9, color=_GREY, linewidth=0.6, linestyle=":")
        axes.text((at - begin) / 1e9, top / 2, words, rotation=90, va="center", ha="right", size=7)
    axes.legend(frameon=False, labelcolor=_GREY, loc="lower right")
    axes.set_ylim(0, 1.05 * top)
    axes.set_xlim(left=0)
    axes.set_ylabel("GiB in use (NVML)")
    axes.set_xlabel("seconds")
    return figure


def _waits(done: Any) -> Figure:
    figure, axes = _figure(2.4)
    for column, words, colour in (("first_ns", "first token", "#0072b2"), ("end_ns", "last token", "#009e73")):
        seconds = ((done[column] - done["sent_ns"]) / 1e9).sort_values()
        axes.ecdf(seconds, color=colour, linewidth=1.4, label=words)
    axes.set_xlim(left=0)
    axes.set_ylabel("share of requests")
    axes.set_xlabel("seconds since they were sent (measured)")
    axes.legend(frameon=False, labelcolor=_GREY, loc="lower right")
    return figure


# -- figures -------------------------------------------------------------------------------------------


def _figure(height_in: float, rows: int = 1, ratios: tuple[int, ...] | None = None) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes: Axes | Any = figure.subplots(rows, 1, sharex=True, height_ratios=ratios)
    return figure, axes


def _svg(draw: Callable[[], Figure], words: str) -> str:
    """The figure as an inline ``<svg>`` that tells what it shows to those who can't see it."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        out = io.StringIO()
        draw().savefig(out, format="svg", transparent=True, metadata={"Date": None, "Title": words})
    return out.getvalue()[out.getvalue().index("<svg") :].replace("<svg ", '<svg role="img" ', 1)
