"""Documents that pass between steps: layers, plans, stored arrays, delivered files."""
