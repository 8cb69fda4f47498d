"""What tests of recipes, tasks and clients need.

``pack_echo`` writes an archive without weights, a whole tagger, in milliseconds. ``running_stack``
runs engine, gateway and control service on free loopback ports, in a folder of their own.
``vlserve.testing.eager`` answers by a recipe's graphs before their export; it needs torch.
"""

from vlserve.exporter.echo import pack_echo
from vlserve.testing.stack import RunningStack, free_ports, running_stack, with_free_ports

__all__ = ["RunningStack", "free_ports", "pack_echo", "running_stack", "with_free_ports"]
