"""Objects of the bucket whose whole content the program knows."""

from __future__ import annotations

import base64
import hashlib

import pulumi
import pulumi_minio as minio


def multipart_etag(content: bytes) -> str:
    """Return the ETag of `content` uploaded as multipart in one part, as the MinIO provider does.

    Setting it makes a refresh compare the object's content, not only its presence.
    Source: S3 API, "Common response headers" and `CompleteMultipartUpload`.
    """
    part = hashlib.md5(content, usedforsecurity=False).digest()
    return f"{hashlib.md5(part, usedforsecurity=False).hexdigest()}-1"


def object_resource(bucket: str, key: str) -> str:
    """Return the name of an object's resource: an object of another bucket is another resource."""
    return f"{bucket}/{key}"


def declare_text_object(
    bucket_name: str,
    key: str,
    *,
    bucket: pulumi.Input[str],
    content_type: str,
    content: pulumi.Input[str],
    comparable: bool,
    opts: pulumi.ResourceOptions,
) -> minio.S3Object:
    """Declare the object `key`, so that a change of its content by others is found and undone.

    Args:
        bucket_name: the bucket's name.
        key: the object's.
        bucket: the bucket's name again, once the bucket is there.
        content_type: its media type.
        content: its text, stored as UTF-8.
        comparable: whether the server's ETags tell what it has. Those of encrypted objects do not,
            and would differ for ever: then others' changes are not found.
        opts: of the resource.
    """
    text = pulumi.Output.from_input(content)
    return minio.S3Object(
        object_resource(bucket_name, key),
        bucket_name=bucket,
        object_name=key,
        content=text,
        content_type=content_type,
        etag=text.apply(lambda known: multipart_etag(known.encode())) if comparable else None,
        opts=opts,
    )


def declare_binary_object(
    bucket_name: str,
    key: str,
    *,
    bucket: pulumi.Input[str],
    content_type: str,
    content: bytes,
    comparable: bool,
    opts: pulumi.ResourceOptions,
) -> minio.S3Object:
    """Declare the object `key`, as `declare_text_object` does.

    Args:
        bucket_name: the bucket's name.
        key: the object's.
        bucket: the bucket's name again, once the bucket is there.
        content_type: its media type.
        content: its bytes.
        comparable: whether the server's ETags tell what it has.
        opts: of the resource.
    """
    return minio.S3Object(
        object_resource(bucket_name, key),
        bucket_name=bucket,
        object_name=key,
        content_base64=base64.b64encode(content).decode(),
        content_type=content_type,
        etag=multipart_etag(content) if comparable else None,
        opts=opts,
    )
