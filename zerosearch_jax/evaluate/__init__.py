"""Evaluation: scores, intervals, methods, tables, and reports of runs."""
