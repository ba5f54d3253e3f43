"""Components that declare a Nix binary cache on a MinIO server.

Another Pulumi program uses them as this one does, for example::

    from components.binary_cache import BinaryCache, BinaryCacheArgs

    cache = BinaryCache("cache", BinaryCacheArgs(bucket="nix-cache"))
"""
