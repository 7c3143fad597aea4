"""Entries for lowrank."""
