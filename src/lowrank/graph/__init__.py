"""Answers for rules and stages: paths, settings, locks and digests of code."""
