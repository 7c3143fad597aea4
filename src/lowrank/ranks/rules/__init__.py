"""Rank rules, one file each. Each file lists its rule in `ENTRIES`."""
