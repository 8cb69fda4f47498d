"""Which workers, threads, batch size and delay serve an archive best on this machine."""
