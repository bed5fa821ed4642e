"""The page of a report, and the figures on it, drawn from records alone."""
