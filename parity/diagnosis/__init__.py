"""Where two networks part, and why."""
