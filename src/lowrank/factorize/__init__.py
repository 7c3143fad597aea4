"""NumPy only: one file for each factorization."""
