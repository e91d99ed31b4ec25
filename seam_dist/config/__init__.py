"""The configuration: its schema, how it is read, and the `deepspeed:` block."""
