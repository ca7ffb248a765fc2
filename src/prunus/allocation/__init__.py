"""How much of each group stays: a table of allocators that meet a budget in the user's unit."""

from prunus.allocation.allocators import ALLOCATORS, DEFAULT, AllocatorRow, allocate, resolve_allocator
from prunus.allocation.reach import Reach, check_reach, reach

__all__ = ["ALLOCATORS", "DEFAULT", "AllocatorRow", "Reach", "allocate", "check_reach", "reach", "resolve_allocator"]
