"""How much of each group stays: a table of allocators that meet a budget in the user's unit."""

from prunus.allocation.allocators import ALLOCATORS, AllocatorRow, allocate, resolve_allocator

__all__ = ["ALLOCATORS", "AllocatorRow", "allocate", "resolve_allocator"]
