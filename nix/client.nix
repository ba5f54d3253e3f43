# A NixOS machine that uses the cache. It adds to what the machine has, and replaces nothing.
{
  config,
  lib,
  options,
  ...
}:
let
  substituter = import ./substituter.nix { inherit config lib options; };
  inherit (substituter) cfg private;
in
{
  inherit (substituter) options;

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      substituter.machine
      {
        inherit (substituter) assertions;

        nix.settings = substituter.settings // substituter.lists;

        # The daemon substitutes for users. Root's own commands, nixos-rebuild among them, open the
        # store themselves and look in root's home. A file that is there already stays.
        systemd = lib.mkIf (private && cfg.credentialsFile != null) {
          services.nix-daemon.environment.AWS_SHARED_CREDENTIALS_FILE = cfg.credentialsFile;
          tmpfiles.rules = [
            "d /root/.aws 0700 root root -"
            "L /root/.aws/credentials - - - - ${cfg.credentialsFile}"
          ];
        };
      }
    ]
  );
}
