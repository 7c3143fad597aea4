"""One file for each way of choosing ranks."""
