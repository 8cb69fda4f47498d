"""The gateway port on Envoy, and who tells it where traffic goes."""
