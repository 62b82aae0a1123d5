"""Reports of finished runs: one HTML file, figures as PNG and SVG, tables as CSV.

    from rl_onoff.report import make_report, write

    write(["runs/sweep"], "report")  # report.html, figures/ and tables/
    report = make_report(["runs/base", "runs/rl", "runs/switch", "runs/switch-divergence"])
    report.html, report.files  # the same in memory

Needs matplotlib: `pip install 'rl-onoff[report]'`.
"""

from rl_onoff.report.build import TEXTS, Report, make_report, write
from rl_onoff.report.reading import Part, Runs, read_runs

__all__ = ["TEXTS", "Part", "Report", "Runs", "make_report", "read_runs", "write"]
