"""The search over `bits_weight` and images per class. Nothing lives here yet: this layer is the next to be built."""
