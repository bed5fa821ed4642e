"""Optimizers and solvers. They take parameters, torch.nn modules or small documented protocols, and never import tropigrad.nn."""
