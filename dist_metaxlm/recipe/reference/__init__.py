"""The reference of every recipe field: as text, as a page and as a JSON schema."""
