"""What the programs share: clients, servers under test, archives, figures."""
