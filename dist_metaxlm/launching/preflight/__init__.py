"""Checks of the nodes before a long run starts: facts of each node, what is wrong with them, how fast their links are."""
