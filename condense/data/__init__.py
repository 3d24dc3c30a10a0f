"""Real images: found, read, decoded, split, shared out over workers, digested and normalised."""
