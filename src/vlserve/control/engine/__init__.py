"""The engine port on TorchServe."""
