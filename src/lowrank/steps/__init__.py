"""One module for each rule: arguments, files and progress, but no computation."""
