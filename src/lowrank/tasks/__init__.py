"""Measure the accuracy and loss of networks in PyTorch and in ONNX Runtime."""
