"""The laboratory of lottery tickets: lottery, deconstruction, supermasks and rethinking, over seeds and in several processes."""

from prunus.laboratory.tickets.study import study_tickets

__all__ = ["study_tickets"]
