"""The whole program on one screen: settings, components, outputs."""

import pulumi
import pulumi_minio as minio

from components import deployment_checks, key_rotation, settings
from components.binary_cache import BinaryCache, BinaryCacheArgs
from components.builder import (
    BuilderAccess,
    BuilderAccessArgs,
    ReaderAccess,
    ReaderAccessArgs,
)
from components.builder_credentials import BuilderCredentials, BuilderCredentialsArgs
from components.closure import Closure, resolve
from components.closure_push import ClosurePush, ClosurePushArgs, ssh_connection
from components.landing_page import landing_page
from components.nixos import (
    ClientConfiguration,
    credentials_file,
    modules_configuration,
    substituter,
)
from components.safeguard import Safeguard
from components.signing_key import SigningKey

stack = settings.load()
key_rotation.check(stack)
deployment_checks.check_server(stack)

server = minio.Provider(
    "minio",
    minio_server=stack.endpoint.server,
    minio_ssl=stack.endpoint.tls,
    minio_region=stack.region,
    minio_user=stack.minio_user,
    minio_password=pulumi.Output.secret(stack.minio_password),
    minio_cacert_file=stack.ca_certificate_file,
)
signing_keys = [
    SigningKey(name, key_name=name, adopted_secret_key=stack.adopted_signing_keys.get(name))
    for name in stack.signing_keys
]
public_keys = pulumi.Output.all(*(key.public_key for key in signing_keys))
client = public_keys.apply(
    lambda keys: ClientConfiguration(substituter(stack), keys, stack.ca_certificate)
)
cache = BinaryCache(
    "cache",
    BinaryCacheArgs(
        bucket=stack.bucket,
        protect=stack.protect,
        anonymous_download=not stack.private,
        anonymous_listing=stack.anonymous_listing,
        retention_days=stack.retention_days,
        grace_days=stack.grace_days,
        store_dir=stack.store_dir,
        want_mass_query=stack.want_mass_query,
        priority=stack.priority,
        landing_page=None
        if stack.private
        else client.apply(lambda known: landing_page(known, stack.retention_days)),
    ),
    pulumi.ResourceOptions(provider=server),
)

declared: list[pulumi.Resource] = [cache, *signing_keys]
if stack.private:
    reader = ReaderAccess(
        "reader",
        ReaderAccessArgs(bucket=cache.bucket, user=stack.reader_user),
        pulumi.ResourceOptions(provider=server),
    )
    declared.append(reader)
    pulumi.export(
        "readerCredentials",
        pulumi.Output.all(reader.access_key_id, reader.secret_access_key).apply(
            lambda credential: credentials_file(stack.reader_user, *credential)
        ),
    )
store_paths = resolve(stack.builders, stack.store_dir)
builders = {}
for builder in stack.builders:
    access = BuilderAccess(
        builder.name,
        BuilderAccessArgs(bucket=cache.bucket, user=builder.s3_user, policy=builder.s3_policy),
        pulumi.ResourceOptions(provider=server),
    )
    declared.append(access)
    builders[builder.name] = {
        "accessKeyId": access.access_key_id,
        "secretAccessKey": access.secret_access_key,
    }
    if builder.credentials_directory is not None:
        credentials = BuilderCredentials(
            builder.name,
            BuilderCredentialsArgs(
                directory=builder.credentials_directory,
                connection=None if builder.local else ssh_connection(builder),
                secret_access_key=access.secret_access_key,
                signing_key=signing_keys[-1].secret_key,
            ),
        )
        declared.append(credentials)
    if builder.closures:
        closure = Closure(builder.name, builder.closures, store_paths.get(builder.name))
        push = ClosurePush(
            builder.name,
            ClosurePushArgs(
                connection=None if builder.local else ssh_connection(builder),
                closures=closure.store_paths,
                endpoint=str(stack.endpoint),
                region=stack.region,
                ca_certificate=stack.ca_certificate,
                bucket=cache.bucket,
                access_key_id=access.access_key_id,
                secret_access_key=access.secret_access_key,
                signing_keys=[signing_keys[-1].secret_key],
                upstream_keys=stack.upstream_keys,
                retention_days=stack.retention_days,
                compression=stack.compression,
                compression_level=stack.compression_level or None,
                parallelism=stack.parallelism or None,
                staging_limit=stack.staging_limit,
            ),
        )
        declared.append(push)
        builders[builder.name]["lastPush"] = push.summary
Safeguard("safeguard", protect=stack.protect, guarded=declared)

pulumi.export("substituter", substituter(stack))
pulumi.export(key_rotation.PUBLIC_KEYS_OUTPUT, public_keys)
pulumi.export("retention", deployment_checks.check_lifecycle(stack, cache.lifecycle))
pulumi.export("nixConf", client.apply(ClientConfiguration.nix_conf))
pulumi.export("nixosConfiguration", client.apply(ClientConfiguration.nixos_configuration))
pulumi.export("flakeNixConfig", client.apply(ClientConfiguration.flake_nix_config))
pulumi.export("builders", builders)
pulumi.export(
    "nixos",
    pulumi.Output.all(
        client, {name: builder["accessKeyId"] for name, builder in builders.items()}
    ).apply(lambda known: modules_configuration(stack, *known)),
)
pulumi.export(
    "signingKeyBackup",
    pulumi.Output.all(*(key.secret_key for key in signing_keys)).apply("\n".join),
)
