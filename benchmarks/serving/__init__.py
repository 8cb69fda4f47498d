"""How fast a stack answers, and what more models, larger inputs and new versions cost."""
