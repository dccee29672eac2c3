"""Find what a storage root contains and what of it may be deleted, and check files against their digests: `iddpm gc` and `iddpm verify`."""
