"""From a checkpoint to an archive: read, convert, prove equal, pack."""
