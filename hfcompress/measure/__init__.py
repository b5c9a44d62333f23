"""Size, speed, memory, operations and quality, measured on what lies on disk, and the record that holds them."""
