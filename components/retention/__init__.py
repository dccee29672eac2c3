"""What the storage root contains, what of it may be deleted, and whether it is undamaged. The commands `gc` and `verify` use it."""
