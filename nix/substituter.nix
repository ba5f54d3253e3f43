# What every client of the cache sets, whichever system reads it: `client.nix` is NixOS',
# `darwin.nix` nix-darwin's, `home-manager.nix` home-manager's. No module by itself.
{
  config,
  lib,
  options,
}:
let
  cfg = config.services.nix-binary-cache.client;
  cache = lib.importJSON cfg.configurationFile;
  private = cache.access == "private";
  # A Nix that does not know a parameter of an URL warns of it with every command. Lix and
  # Determinate Nix count in numbers of their own: above Nix's, whatever they know.
  version = config.nix.package.version or "0";
  hasRetries =
    (config.nix.package.pname or "") == "nix"
    && lib.versionAtLeast version "2.35"
    && lib.versionOlder version "2.90";
  parameters =
    lib.optional (cfg.priority != null) "priority=${toString cfg.priority}"
    ++ lib.optional (
      hasRetries && cfg.downloadAttempts != null
    ) "retry-attempts=${toString cfg.downloadAttempts}";
  joined = lib.concatStringsSep "&" parameters;
  url =
    if parameters == [ ] then
      cache.substituter
    else
      "${cache.substituter}${if private then "&" else "?"}${joined}";
  # Weaker than any value of somebody else's, `mkDefault` (1000) too, and stronger than an option's
  # own default (1500). What a person has set here by name goes before others' `mkDefault`.
  unlessSet =
    name:
    let
      option = options.services.nix-binary-cache.client.${name};
    in
    lib.mkOverride (if option.highestPrio < 1500 then 900 else 1250) cfg.${name};
in
{
  inherit cfg private;

  options.services.nix-binary-cache.client = {
    enable = lib.mkEnableOption "the binary cache as a substituter of this machine";

    configurationFile = lib.mkOption {
      type = lib.types.path;
      example = lib.literalExpression "./cache.json";
      description = "What `pulumi stack output nixos --json` printed. It holds no secret.";
    };

    priority = lib.mkOption {
      type = lib.types.nullOr lib.types.ints.unsigned;
      default = null;
      example = 30;
      description = ''
        Which cache this machine asks first: the lower, the earlier; cache.nixos.org has 40.
        Null leaves it to the cache.
      '';
    };

    credentialsFile = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "/run/secrets/nix-cache-reader";
      description = ''
        For a private cache: the file, in AWS's format and readable by root alone, that holds what
        `pulumi stack output readerCredentials --show-secrets` printed. It belongs to a secret
        manager, never to the Nix store, which everyone can read.
      '';
    };

    fallback = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether Nix builds what it cannot download. Without it a build fails while a cache that Nix
        knows is away.
      '';
    };

    connectTimeout = lib.mkOption {
      type = lib.types.nullOr lib.types.ints.positive;
      default = 3;
      description = ''
        Seconds that Nix waits for a cache to take a connection, this one and all others. Null
        leaves it to Nix: 15 seconds, and 300 before Nix 2.29.
      '';
    };

    downloadAttempts = lib.mkOption {
      type = lib.types.nullOr lib.types.ints.positive;
      default = 3;
      description = ''
        How often Nix tries to reach a cache before it goes on without it: this one from Nix 2.35
        on, all of them with an older Nix, Lix or Determinate Nix. Null leaves it to Nix: 5 times.
      '';
    };
  };

  assertions = [
    {
      # NixOS, nix-darwin and home-manager then leave out whatever is set below `nix`, in silence.
      assertion = config.nix.enable or true;
      message =
        "services.nix-binary-cache.client.enable is true, but nix.enable is false, so that no setting "
        + "reaches Nix; leave the module out, and let the file that the machine's Nix reads, "
        + "/etc/nix/nix.custom.conf with Determinate Nix, include what `pulumi stack output nixConf` "
        + "prints.";
    }
    {
      assertion = cfg.credentialsFile != null -> !lib.hasPrefix builtins.storeDir cfg.credentialsFile;
      message =
        "services.nix-binary-cache.client.credentialsFile is in the Nix store, which everyone "
        + "can read; name a file outside it, as a text.";
    }
  ];

  # What a machine does besides, whose daemon reads the cache for everybody.
  machine = {
    assertions = [
      {
        assertion = private -> cfg.credentialsFile != null;
        message =
          "services.nix-binary-cache.client.credentialsFile is missing: the cache is private; "
          + "name the file with its reader's credential.";
      }
    ];
    security.pki.certificates = lib.optional (cache.caCertificate != null) cache.caCertificate;
  };

  # Lists, which merge with what the machine has of them.
  lists = {
    extra-substituters = [ url ];
    extra-trusted-public-keys = cache.publicKeys;
  };

  # Single values, which would take another one's place.
  settings =
    lib.optionalAttrs cfg.fallback { fallback = unlessSet "fallback"; }
    // lib.optionalAttrs (cfg.connectTimeout != null) {
      connect-timeout = unlessSet "connectTimeout";
    }
    // lib.optionalAttrs (!hasRetries && cfg.downloadAttempts != null) {
      download-attempts = unlessSet "downloadAttempts";
    };
}
