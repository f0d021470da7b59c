"""The search over mixing proportions: which mixtures are tried, what is compared with them, what may be concluded."""
