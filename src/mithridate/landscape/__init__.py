"""What the loss of a network looks like around its weights, and four tests of what is believed about it.

Reference: Goldblum, Geiping, Schwarzschild, Moeller, Goldstein. "Truth or Backpropaganda? An Empirical Investigation of
Deep Learning Theory". ICLR 2020. arXiv 1910.00359.
"""
