"""Formats in which poison travels to and from other toolkits: one file per format, found by its class."""
