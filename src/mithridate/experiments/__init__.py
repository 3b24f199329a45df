"""Trials, studies of many trials, what they leave on disk, and the tables and reports made from it."""
