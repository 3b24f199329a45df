"""Gradient inversion: what a shared gradient or update gives away of the images behind it."""
