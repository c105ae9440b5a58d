"""Measurements of the compute, beside what the machine can do: `make bench`."""
