"""From raw web text to clean documents: records, readers. Knows nothing of models, tasks and token caches."""
