"""Image sources: folders, archives, S3 prefixes, and the published data sets. `catalog.open_splits` opens any of them by its address."""
