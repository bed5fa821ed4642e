"""Feasible target propagation: hard-threshold networks as convex fits under a combinatorial search for hidden targets."""
