"""Load tests of a served model: run, judge, report."""
