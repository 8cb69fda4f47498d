"""The engine port: instances of TorchServe and of Triton."""
