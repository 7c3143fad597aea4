"""PyTorch: datasets, fine-tuning, evaluation."""
