"""What is frozen into every archive: contract, image, text, backend, pipeline.

Nothing here imports the rest of vlserve, and torch only where the graph is TorchScript.
"""
