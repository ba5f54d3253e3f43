# A NixOS machine that uses the cache. It adds to what the machine has, and replaces nothing.
{ config, lib, ... }:
let
  cfg = config.services.nix-binary-cache.client;
  cache = lib.importJSON cfg.configurationFile;
  private = cache.access == "private";
  separator = if private then "&" else "?";
  priority = lib.optionalString (
    cfg.priority != null
  ) "${separator}priority=${toString cfg.priority}";
in
{
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
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = private -> cfg.credentialsFile != null;
        message =
          "services.nix-binary-cache.client.credentialsFile is missing: the cache is private; "
          + "name the file with its reader's credential.";
      }
      {
        assertion =
          cfg.credentialsFile != null -> !lib.hasPrefix builtins.storeDir cfg.credentialsFile;
        message =
          "services.nix-binary-cache.client.credentialsFile is in the Nix store, which everyone "
          + "can read; name a file outside it, as a text.";
      }
    ];

    nix.settings = {
      extra-substituters = [ "${cache.substituter}${priority}" ];
      extra-trusted-public-keys = cache.publicKeys;
    };

    security.pki.certificates = lib.optional (cache.caCertificate != null) cache.caCertificate;

    # The daemon substitutes for users. Root's own commands, nixos-rebuild among them, open the
    # store themselves and look in root's home. A file that is there already stays.
    systemd = lib.mkIf (private && cfg.credentialsFile != null) {
      services.nix-daemon.environment.AWS_SHARED_CREDENTIALS_FILE = cfg.credentialsFile;
      tmpfiles.rules = [
        "d /root/.aws 0700 root root -"
        "L /root/.aws/credentials - - - - ${cfg.credentialsFile}"
      ];
    };
  };
}
