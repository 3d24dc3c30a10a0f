"""Real images: finds, reads, decodes and splits them, shares them out over workers, digests and normalises them."""
