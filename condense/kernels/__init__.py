"""Compiled CPU operations, and the same operations in PyTorch where they cannot be compiled."""
