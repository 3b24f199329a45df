"""One file per attack on shared gradients; the file name is its name in the CLI and in JSON."""
