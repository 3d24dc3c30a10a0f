"""Plain implementations, written from the papers' descriptions, that the benchmarks hold ours against."""
