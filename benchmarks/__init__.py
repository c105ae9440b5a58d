"""Measurements of the compute, side by side with other ways to do it: `make bench`."""
