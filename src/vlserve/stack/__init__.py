"""The processes of one stack: up, down, status, and the same in containers."""
