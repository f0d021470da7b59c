"""Raw web text to clean documents, the way C4 was made; every page and line that is left out has a named reason."""
