"""From a plan to a small network, and the proof that it is the right one."""

from prunus.surgery.added_bias import add_bias
from prunus.surgery.artifact import load, save
from prunus.surgery.record import AttributeEdit, SliceEdit, SurgeryRecord
from prunus.surgery.remove import remove
from prunus.surgery.selected_inputs import select_inputs
from prunus.surgery.selected_norms import select_streams
from prunus.surgery.silence import silence
from prunus.surgery.verify import randomise, verify

__all__ = [
    "AttributeEdit",
    "SliceEdit",
    "SurgeryRecord",
    "add_bias",
    "load",
    "randomise",
    "remove",
    "save",
    "select_inputs",
    "select_streams",
    "silence",
    "verify",
]
