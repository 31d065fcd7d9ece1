"""Hangs: what each rank does, noted in shared memory, and a process next to it that ends a rank without progress."""
