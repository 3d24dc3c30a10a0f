"""Measurements behind every figure that the documentation states: `python -m benchmarks` lists them."""
