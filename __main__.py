"""The whole program on one screen: settings, components, outputs."""

from __future__ import annotations

import gc
import signal

import pulumi

from program import commands

# The engine interrupts the program of a deployment that has failed. It has said why by then, and
# Python's traceback of the interruption would bury it.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# Before all else is imported: meanwhile the engine starts the providers.
runs_commands = commands.declare_early()

from program.server import declare_early
from program.settings import stack as settings

stack = settings.load()
declared = declare_early(stack)

from components.safeguard import Safeguard
from program import former_names
from program.announcement import announce
from program.checks import before_pushes, deployment, key_rotation, readable, recorded
from program.declaration import (
    declare_builders,
    declare_cache,
    declare_pins,
    declare_readers,
    declare_signing_keys,
)
from program.links import follow_links
from program.outputs import machines
from program.outputs.machines import ClientConfiguration

# What was imported stays: the garbage collector need not look through it again and again.
gc.freeze()

server, settled = deployment.begin(stack, declared)
runs_commands = runs_commands or commands.declare_commands()
former_names.use(former_names.find(recorded.read(), stack.builders))
signing_keys = declare_signing_keys(settled.signing_keys)
commands.let_providers_start()
followed = follow_links(stack.builders, preview=pulumi.runtime.is_dry_run())
announce(stack, settled.signing_keys, recorded.read().of(stack.bucket), followed)

public_keys = pulumi.Output.all(*(key.public_key for key in signing_keys))
client = public_keys.apply(lambda keys: machines.client_configuration(stack, keys))
asked_first = before_pushes.hook(stack, settled)
cache = declare_cache(stack, server, client, settled, asked_first)
readers = declare_readers(stack, server, cache)
builders = declare_builders(
    stack, followed, server, runs_commands, cache, signing_keys, settled, asked_first
)
pins = declare_pins(stack, builders, server, cache, settled)
guarded = [cache, *signing_keys, *readers.guarded, *builders.guarded]
Safeguard(
    "safeguard",
    protect=stack.protect,
    guarded=guarded,
    refusal=lambda: deployment.refusal_of_a_destroy(stack),
)

pulumi.export("substituter", machines.substituter(stack))
pulumi.export(key_rotation.PUBLIC_KEYS_OUTPUT, public_keys)
retired = key_rotation.retired_now(recorded.read(), settled.signing_keys)
pulumi.export(key_rotation.RETIRED_KEYS_OUTPUT, retired)
retention = deployment.conclude(stack, settled, cache.lifecycle_applied, cache.access_applied)
pulumi.export(recorded.RETENTION_OUTPUT, retention)
pulumi.export(recorded.PROTECTED_OUTPUT, stack.protect)
pulumi.export(deployment.COMPARABLE_ETAGS_OUTPUT, cache.comparable_etags)
pulumi.export("nixConf", client.apply(ClientConfiguration.nix_conf))
pulumi.export("nixosConfiguration", client.apply(ClientConfiguration.nixos_configuration))
pulumi.export("flakeNixConfig", client.apply(ClientConfiguration.flake_nix_config))
if stack.ca_certificate is not None:
    pulumi.export("caCertificate", stack.ca_certificate)
pulumi.export("builders", builders.outputs)
pulumi.export("pins", pins)
for name, policy in machines.policies_to_give(stack).items():
    pulumi.export(name, policy)
if not stack.bucket_policy:
    pulumi.export(readable.OUTPUT, readable.proved(stack, [cache.first_object, *builders.done]))
for reader in readers.credentials:
    credential = pulumi.Output.all(
        stack.reader_profile, reader.access_key_id, reader.secret_access_key
    )
    pulumi.export("readerCredentials", credential.apply(lambda c: machines.credentials_file(*c)))
users = {name: outputs["accessKeyId"] for name, outputs in builders.outputs.items()}
pulumi.export(
    "nixos",
    pulumi.Output.all(client, users).apply(
        lambda known: machines.modules_configuration(stack, *known)
    ),
)
pulumi.export(
    "signingKeyBackup",
    pulumi.Output.all(*(key.secret_key for key in signing_keys)).apply("\n".join),
)
