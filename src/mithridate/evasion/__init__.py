"""Evasion: images moved inside a ball until a trained model gets them wrong, and how many it still gets right."""
