"""The agent of a user: shows what happens to their media as notifications on their desktop."""
