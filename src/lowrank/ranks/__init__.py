"""Choice of ranks: rank rules in `rules`, one file each, and what they share."""
