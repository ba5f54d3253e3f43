# A NixOS machine that uses the cache. It adds to what the machine has, and replaces nothing.
{ config, lib, ... }:
let
  substituter = import ./substituter.nix { inherit config lib; };
  inherit (substituter) cache cfg private;
in
{
  inherit (substituter) options;

  config = lib.mkIf cfg.enable {
    assertions = substituter.assertions ++ [
      {
        assertion = private -> cfg.credentialsFile != null;
        message =
          "services.nix-binary-cache.client.credentialsFile is missing: the cache is private; "
          + "name the file with its reader's credential.";
      }
    ];

    nix.settings = substituter.settings;

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
