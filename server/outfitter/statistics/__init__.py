"""Inference for experiments: pure functions of sums over units, valid at any peek. No I/O."""
