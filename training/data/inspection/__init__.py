"""Look at images before they are prepared, and at prepared data sets: description, verification, contact sheet. For commands."""
