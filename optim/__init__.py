"""Optimizers and solvers: they take parameters, torch.nn modules or small documented protocols, never tropigrad.nn."""
