"""TorchServe's worker program.

Not inside vlserve: a serving process holds one vlserve, the archive's.
"""
