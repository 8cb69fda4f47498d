"""Figures of published benchmarks, as functions of answers; nothing here runs a model."""
