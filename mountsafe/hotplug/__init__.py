"""Devices as udev knows them."""
