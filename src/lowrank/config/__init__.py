"""params.yaml: sections, defaults, merging, and the words of its errors."""
