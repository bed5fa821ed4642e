"""The front of a network's loss and the ℓ¹ norm of its weights."""
