"""Image sources: folders, archives, S3 prefixes, and the published data sets."""
