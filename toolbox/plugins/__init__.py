"""Small stand-ins for the official Pulumi plugins, for machines that cannot download those.

They are the Python language host (`language_host`), the provider plugin `minio` 0.17.1
(`minio_provider`) and the provider plugin `command` 1.2.1 (`command_provider`), each with the part
of the official plugin that this project uses and no more. A machine that can have an official
plugin uses it. `docs/plugins.md` lists what they deliberately do differently.
"""
