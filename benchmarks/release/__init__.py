"""What clients notice of releases, rollbacks and crashes, and what the judge finds."""
