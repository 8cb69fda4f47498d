"""The tick: what the ledger wants against what engine and gateway say."""
