"""Results, their comparison with the control, tables, cards and pictures."""
