"""params.yaml: its sections, their defaults, and the settings of one network."""
