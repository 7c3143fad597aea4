"""Make trained convolutional networks small and fast by low-rank decomposition."""
