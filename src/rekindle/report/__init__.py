"""What the runs say: curves, costs and a verdict on one HTML page, and a model card for each checkpoint.

Reads only what other verbs left in the folders (`rekindle.json`, `metrics.jsonl`, `verify.json`), no model.
"""

from rekindle.report.card import write_card
from rekindle.report.config import ReportConfig
from rekindle.report.page import Report, write_report
from rekindle.report.table import Row

__all__ = ["Report", "ReportConfig", "Row", "write_card", "write_report"]
