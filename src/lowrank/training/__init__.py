"""PyTorch: fine-tuning and distillation."""
