"""What is in data files: counts, labels, texts, images, near-duplicates, labels that look wrong."""
