"""The vocabulary that every part of mithridate shares: data, models, training, perturbations, settings."""
