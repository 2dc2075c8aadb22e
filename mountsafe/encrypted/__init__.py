"""An encrypted disk: the processes that derive its key and serve its plaintext, and the host's end of them."""
