"""Poisoning: what an attacker may do, attacks, triggers, defences, and the judge that measures them."""
