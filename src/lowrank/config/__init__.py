"""params.yaml: sections, defaults, merging and error messages."""
