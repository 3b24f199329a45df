"""Convex relaxation of labelling problems on pixel grids and on graphs of superpixels; stands alone."""
