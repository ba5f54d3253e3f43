"""What a machine needs around the program: engine, server, plugins, a throwaway builder.

The components never import this package; it is run as `python -m toolbox VERB` and
imported by the tests. See docs/toolbox.md.
"""
