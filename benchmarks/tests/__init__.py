"""Tests of the benchmarks' own arithmetic, and short runs of the programs."""
