"""The report of a job: report.json, and report.html with a plot."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlserve.batch.duplicates import count_duplicates
from vlserve.batch.job import JobFolder, JobRecord, Receipt, total
from vlserve_worker.storage import write_whole

SHOWN_LABELS = 50


def make_report(
    record: JobRecord, folder: JobFolder, run: Mapping[str, Any], core_hour_price: float | None
) -> Mapping[str, Any]:
    """Return what report.json has.

    Args:
        run: What is known of this run alone.
        core_hour_price: Of one core for one hour, in any currency.
    """
    of = record.model_dump(mode="json", include={"archive", "sha256", "model", "version", "task"})
    receipts = folder.receipts()
    sums = total(receipts)
    rows, cpu_s = int(sums["rows"]), float(sums["cpu_seconds"])
    price_s = None if core_hour_price is None else core_hour_price / 3600
    return {
        "schema": 1,
        **of,
        "out": str(folder.out),
        **sums,
        "duplicate_ids": count_duplicates(
            [folder.ids_file(part) for part in receipts],
            [receipt.rows for receipt in receipts.values()],
        ),
        **run,
        "cost_per_million": cpu_s / rows * 1e6 * price_s if price_s is not None and rows else None,
    }


def write_report(folder: JobFolder, report: Mapping[str, Any]) -> None:
    """Write report.json and report.html into the output's folder."""
    text = json.dumps(report, ensure_ascii=False, indent=1)
    write_whole(folder.out / "report.json", (text + "\n").encode("utf-8", "backslashreplace"))
    receipts = sorted(folder.receipts().values(), key=lambda receipt: receipt.ended_at)
    page = render(report, plot_of(receipts))
    write_whole(folder.out / "report.html", page.encode("utf-8", "backslashreplace"))


def render(report: Mapping[str, Any], plot: str) -> str:
    """Return the page; ``plot`` is SVG, empty for none."""
    templates = Environment(
        loader=PackageLoader("vlserve.batch"), autoescape=True, undefined=StrictUndefined
    )
    labels = list(report["labels"].items())
    return templates.get_template("report.html.j2").render(
        report=report,
        out=Path(report["out"]).name,
        labels=labels[:SHOWN_LABELS],
        more_labels=len(labels[SHOWN_LABELS:]),
        plot=Markup(plot),
    )


def plot_of(receipts: Sequence[Receipt]) -> str:
    """Return rows over time as SVG, of parts in the order of their ends; empty where these are not
    known, as those of earlier versions of vlserve."""
    from matplotlib.figure import Figure

    receipts = [receipt for receipt in receipts if receipt.ended_at]
    if not receipts:
        return ""
    began_at = receipts[0].ended_at - receipts[0].seconds
    minutes, rows = [0.0], [0]
    for receipt in receipts:
        minutes.append((receipt.ended_at - began_at) / 60)
        rows.append(rows[-1] + receipt.rows)
    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(minutes, rows, drawstyle="steps-post")
    axes.set_xlabel("minutes since the first part began, breaks between runs included")
    axes.set_ylabel("rows that are done")
    axes.set_ylim(bottom=0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
