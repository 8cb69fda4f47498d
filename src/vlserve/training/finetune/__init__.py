"""A published checkpoint, trained on for a task of its own: `run`.

plan             what a recipe says of how its networks go on learning
initial_network  the network of a checkpoint, and what of it is new
data             items of a task as arrays, by the functions that serving uses
jobs             one objective each, for `vlserve.training.run`
"""
