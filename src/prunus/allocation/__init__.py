"""How much of each group stays: a table of allocators that meet a budget in the user's unit."""

from prunus.allocation.allocators import ALLOCATORS, AllocatorRow, allocate, default_allocator, resolve_allocator
from prunus.allocation.reach import Reach, check_reach, reach

__all__ = ["ALLOCATORS", "AllocatorRow", "Reach", "allocate", "check_reach", "default_allocator", "reach", "resolve_allocator"]
