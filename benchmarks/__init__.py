"""Benchmarks: parity with the peer first, then both timed in the same run."""
