"""What mithridate is compared with: short hand-written loops that use nothing of it but the networks.

The ``plain`` functions are what one writes first: float32, NCHW, every gradient, ordinary layers (``pixels.ordinary``).
The ``by_hand`` functions are the fastest loops we could write; a ``Way`` says which tricks one of them uses, so that
every trick can be measured with and without the others.
"""
