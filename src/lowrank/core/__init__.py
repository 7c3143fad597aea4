"""Documents that pass between steps: layers, plans, stored arrays, result folders."""
