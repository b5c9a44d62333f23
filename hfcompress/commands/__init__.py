"""Commands of the command line, and what all of them share; `cli.py` puts them together."""
