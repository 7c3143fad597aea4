"""ONNX graphs: export, counts of parameters and MACs, int8."""
