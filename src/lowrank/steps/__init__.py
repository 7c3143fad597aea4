"""One module for each rule: arguments, files, progress; no mathematics."""
