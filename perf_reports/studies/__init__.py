"""Each system's experiment, beside dense backprop on the same network."""
