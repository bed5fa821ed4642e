"""What several ops mean by the same word: the semirings, and networks as lists of weights."""
