"""Compress a network in memory: choose ranks, decompose layers, and put the factors in."""
