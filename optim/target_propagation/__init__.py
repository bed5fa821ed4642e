"""Feasible target propagation: convex fits of hard-threshold layers under a search for hidden targets."""
