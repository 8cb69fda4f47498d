"""The servers that speed is compared with."""
