"""Show the result of a checked release in Locust's HTML report."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from vlserve.drill.release_result import CheckedRelease


def render_section(result: CheckedRelease) -> str:
    """Return the checks, the split of each step and the summary of each version as HTML."""
    templates = Environment(
        loader=PackageLoader("vlserve.drill"), autoescape=True, undefined=StrictUndefined
    )
    return templates.get_template("checked_release.html.j2").render(
        result=result,
        checks=[(c.name, "held" if c.passed else "BROKE", c.said) for c in result.checks],
        steps=[
            (
                f"{step.weight} %",
                f"{step.free_on_candidate} of {step.free}",
                f"{step.callers_on_candidate} of {step.callers}",
            )
            for step in result.steps
        ],
        versions=[
            (v.version, v.requests, f"{v.error_rate:.3%}", v.p50_ms, v.p99_ms)
            for v in result.versions
        ],
    )
