"""ONNX Runtime only: measuring a model here or on another machine."""
