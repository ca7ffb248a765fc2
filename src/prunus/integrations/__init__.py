"""Callbacks that prune inside of other frameworks' training: `prunus.integrations.lightning`, `prunus.integrations.transformers`.

Each imports its framework, so that neither is imported here.
"""
