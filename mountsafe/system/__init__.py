"""What the policy changes on this machine, and what it finds there."""
