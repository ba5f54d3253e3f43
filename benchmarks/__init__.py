"""Measurements that somebody can repeat; each writes its figures to `build/bench-NAME.json`."""
