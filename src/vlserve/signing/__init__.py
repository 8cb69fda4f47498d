"""Signatures of archives: OpenSSF model-signing bundles, provenance, and lists of components."""
