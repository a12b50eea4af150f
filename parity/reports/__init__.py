"""What a check found, as objects, a terminal table, JSON and a page."""
