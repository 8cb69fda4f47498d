"""Gray releases: a candidate meets traffic in steps, and evidence decides how it goes on."""
