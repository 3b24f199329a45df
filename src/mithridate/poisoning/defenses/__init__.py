"""One file per defence; the file name is the defence's name in the CLI and in JSON."""
