"""The mathematics that several ops share: the semirings, and networks as lists of weights."""
