"""Raw web text to clean documents, the way C4 was made: whatever is left out, record, page or line, has a named reason.

Knows nothing of models, tasks and token caches.
"""
