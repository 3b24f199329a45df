"""One file per defence of what a client shares; the file name is its name in the CLI and in JSON."""
