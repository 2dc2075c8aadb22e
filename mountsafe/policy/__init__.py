"""Rules and risk: pure data and pure functions."""
