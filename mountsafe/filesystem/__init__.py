"""What a mount shows: the index of what has been learned, the reader, and the FUSE operations."""
