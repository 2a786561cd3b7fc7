"""Hold a registered version against its record, and make it again."""
