"""Networks that come as ONNX files: read, run, measured and edited without the code behind them."""
