"""The system service: media that are plugged in are claimed, and shown through a virtual machine."""
