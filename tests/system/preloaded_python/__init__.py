"""A Python that has imported, before it is started, what everything that the engine runs imports.

The engine starts up to seven Python processes for each of its commands: the language host twice,
what that asks Python for, the program and three plugins. Most of what they take goes into importing
gRPC and the SDK, the same each time. `server` imports both once; `client`, the Python that the
engine is given, asks it for a fork of itself.

A fork has the arguments, environment, files, signals and end of the client, which stands in its
place until then, and imports the project's own code itself. Where it would have something else of
the operating system than the client has (`client.surroundings`), a real Python starts.
"""
