"""The agent of a user: what happens to his media, as notifications on his desktop."""
