"""Checks of the nodes before a long run starts: facts of each node, problems with them, bandwidth of their links."""
