"""The steps of a version's life: load, probe, warm up, drain."""
