"""Choosing the strata of a base for a task: where to cut, from data."""
