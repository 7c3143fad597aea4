"""What rules and stages ask for: paths, settings, locks, digests of code."""
