"""The whole ℓ¹ regularization path of a network: how it is walked, and the front of points that comes of it."""
