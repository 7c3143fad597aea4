"""Results, their comparison with the control, tables, model cards and pictures."""
