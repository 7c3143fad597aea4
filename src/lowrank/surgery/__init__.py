"""PyTorch: find layers, replace them, and measure the effect on the network's activations."""
