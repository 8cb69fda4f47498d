"""Search the workers, threads, batch size and delay that serve an archive best on this machine."""
