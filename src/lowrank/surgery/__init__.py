"""Find layers of PyTorch networks, replace them, and measure the effect on activations."""
