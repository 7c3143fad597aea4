"""Base class of settings, their merge, and messages about mistakes in a configuration file."""
