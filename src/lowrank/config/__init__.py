"""How params.yaml is read: the file, the merging of its sections, and the words of its errors."""
