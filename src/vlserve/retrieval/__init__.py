"""From a corpus of images or texts to an archive that finds them: `vlserve index`."""
