"""A disk that lies in a file of its own format: the process that opens it, and the host's end of that."""
