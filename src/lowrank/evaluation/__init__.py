"""Measure the metric, the loss and the outputs of networks, in PyTorch and in ONNX Runtime."""
