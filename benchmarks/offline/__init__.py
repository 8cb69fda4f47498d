"""Offline jobs: what an item costs by each way, and a million rows while processes are killed."""
