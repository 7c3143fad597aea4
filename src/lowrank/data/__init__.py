"""Datasets: obtaining, storing, splitting and reading images."""
