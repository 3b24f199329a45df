"""One file per attack; the file name is the attack's name in the CLI and in JSON."""
