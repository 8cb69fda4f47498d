"""Stock TorchServe: the eager network and the handler of its documentation."""
