"""Rollouts: a candidate gets traffic in steps, and evidence decides how it goes on."""
