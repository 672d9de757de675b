"""Runs as pages for people: what a run records for its report, report.html, and the comparison of several runs.

Works from a run's folder alone. `recording/` is what a run writes there while it goes on; `runs/`, `panels/` and `page`
make the report of it, and import neither torch nor Flower; matplotlib is imported where a figure is drawn.
"""
