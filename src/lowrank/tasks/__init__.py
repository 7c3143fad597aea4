"""What accuracy means for a network, and its evaluation in PyTorch and in ONNX Runtime."""
