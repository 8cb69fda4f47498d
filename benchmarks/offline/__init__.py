"""Offline jobs: what an item costs by each way, covers against the gateway's answers, and a million
rows while processes are killed."""
