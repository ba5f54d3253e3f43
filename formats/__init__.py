"""Texts of Nix and S3, pure: read strictly, written exactly.

Whatever comes from a bucket or a server is taken apart here and nowhere else. Every failure is a
`FormatError` whose text never repeats its input, because the input may be a secret.

All of it but `signing` is the standard library's alone, so that it runs on a builder as it is.
"""
