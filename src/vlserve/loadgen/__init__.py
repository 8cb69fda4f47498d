"""Load on a served model: send requests with Locust, judge the answers, report."""
