"""Export networks to ONNX, count parameters and MACs, and quantize to int8."""
