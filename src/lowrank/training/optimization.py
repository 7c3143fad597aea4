"""Create the optimizer of a training run, and compute its learning rate."""

import math

import torch
from torch import nn

from lowrank.config.training import TrainingSettings


def create_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Create the optimizer for the trained parameters of a network."""
    # Apply weight decay only to matrices and kernels. For biases and batch normalization it has no
    # benefit.
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def learning_rate_factor(step: int, steps: int, settings: TrainingSettings) -> float:
    """Return the learning rate at `step` (from 0) divided by its peak.

    The learning rate first increases linearly (warm-up), then follows the schedule.
    """
    warmup = round(settings.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    match settings.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "step":
            return settings.step_factor ** sum(
                step / max(1, steps) >= fraction for fraction in settings.step_at
            )
