"""What each component does."""
