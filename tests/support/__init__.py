"""What tests share: stand-ins, small models, running stacks."""
